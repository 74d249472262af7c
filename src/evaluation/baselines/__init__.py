"""Predictors that see no picture: their scores stand beside every score."""
