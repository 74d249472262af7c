"""Processes: who is there, who waits for whom, how one starts."""
