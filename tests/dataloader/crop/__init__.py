"""Tests of dataloader/crop."""
