"""What a prediction leaves in its folder: numbers, meshes, pictures, a video."""
