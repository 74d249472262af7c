"""Users' files to frames."""
