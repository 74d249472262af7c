"""The doctor: it names planted defects, and nothing where nothing is wrong."""
