"""Measurements.

Each module is one table of ratios against a stated reference, taken in one interleaved run.
"""
