"""Batches: which samples, on which rank, and how they travel."""
