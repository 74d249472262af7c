"""Boxes around hands."""
