"""UTNet: 3D hand pose from RGB-D, everything but the data."""

import src.runtime  # noqa: F401  (how threads wait is said before anything loads torch)
