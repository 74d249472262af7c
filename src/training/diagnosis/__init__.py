"""The doctor: from statistics of data, model, step and validation to the name of what is wrong.

`table.py` how a check is written, judged and told; the checks: `labels.py` and `pictures.py` of samples,
`training.py` of a run; `doctor.py` when they are made. Nothing here draws random numbers, changes weights or
modes, or talks to a rank. A new check is one function with its row, and its cause in the guide
records/TRAINING_DEBUG_GUIDE.md.
"""
