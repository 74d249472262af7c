"""Tests of the loss."""
