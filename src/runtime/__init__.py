"""The process around a run: ranks, log, streams of random numbers, safe files, signals."""
