"""The procedural hand in MANO's format."""
