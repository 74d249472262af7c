"""Files: every call that can fail on somebody's machine."""
