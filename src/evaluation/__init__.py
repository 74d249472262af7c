"""Scores of a validation: collection over ranks, metrics, baselines, submission."""
