"""The crop cache."""
