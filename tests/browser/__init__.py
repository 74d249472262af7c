"""What a real browser makes of our pages."""
