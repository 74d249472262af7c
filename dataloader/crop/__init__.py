"""The crop: its camera, its augmentation, and what is done with it on the device."""
