"""Rotations, cameras and alignments: pure torch."""
