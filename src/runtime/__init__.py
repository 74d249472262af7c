"""The process around a run: ranks, log, streams of random numbers, safe files, signals.

Imported before torch, whose threads read their surroundings when they are loaded: a thread that waits for
another asks a thousand times whether it is done, and then sleeps. By default it asks for a millisecond and
more, on a core that somebody else's work could have, or the very thread that it waits for.
"""

import os

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
