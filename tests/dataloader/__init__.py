"""Tests of the dataloader room."""
