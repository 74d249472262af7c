"""Tests of dataloader/cache."""
