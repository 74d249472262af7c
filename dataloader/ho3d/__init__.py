"""HO3D's own files: lists, annotations, index, labels, official truth, splits."""
