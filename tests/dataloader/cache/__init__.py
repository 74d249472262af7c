"""Tests of dataloader/ho3d."""
