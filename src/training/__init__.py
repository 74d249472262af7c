"""The optimiser step, checkpoints, and what a run writes."""
