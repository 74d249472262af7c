"""Tests of dataloader/pictures."""
