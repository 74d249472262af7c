"""HO3D on disk -> batches on the device."""
