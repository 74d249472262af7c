"""Tests of src/hand."""
