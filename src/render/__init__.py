"""Rasteriser and drawings, numpy and OpenCV."""
