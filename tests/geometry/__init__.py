"""Tests of src/geometry."""
