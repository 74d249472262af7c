"""The hand model: joint orders, MANO's files, the layer, the procedural stand-in."""
