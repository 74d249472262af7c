"""Tests of src/runtime."""
