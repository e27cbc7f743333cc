"""What a run is, on paper and on disk.

`recipe` is everything that determines a run; `optim` and `schedule` are two of its parts; `directory` is what a run writes and how it is
read; `checkpoint` saves and loads the state (`pieces` of tensors, written by `saver` beside the training). May import: base.
"""
