"""What a run is, on paper and on disk.

`recipe` is everything that determines a run; `optim` and `schedule` are two of its parts. `directory` is where a run lies and how it is
read; `logbook` writes what it measures, `environment` says what it runs on. `checkpoint` saves and loads the state: `chunks` of tensors,
`trees` of what is carried, written by `saver` beside the training. May import: base.
"""
