"""What a camera sees of a motion: cameras and appearance -> stage -> depth sensor."""
