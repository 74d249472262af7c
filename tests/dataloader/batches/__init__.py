"""Tests of dataloader/batches."""
