"""Where the hands are: frames -> boxes around them, from files, from depth, or from the last prediction."""
