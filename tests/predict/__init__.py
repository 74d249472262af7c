"""Prediction on own frames."""
