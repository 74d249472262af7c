"""Checkpoints: what they hold, where they stand, who writes them."""
