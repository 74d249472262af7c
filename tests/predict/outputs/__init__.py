"""What a prediction leaves behind."""
