"""UTNet: 3D hand pose from RGB-D, everything but the data."""
