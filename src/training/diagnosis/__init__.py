"""From statistics of data, model, step and validation to the name of what is wrong.

`finding.py` what a check says; `batches.py` all checks of a batch: `labels.py` (with `causes.py`),
`pictures.py`, `alignment.py`;
`network.py` a model on batches; `steps.py` a training step; `scores.py` a validation; `setting.py` splits and
weights; `doctor.py` the object that training calls. Nothing here draws random numbers, changes weights or
modes, or talks to a rank.
"""
