"""What a run will read, compute and keep, before any device works.

`plan` asks `rehearsal` (and `rehearsal_sharded`), which plays an update without numbers, on real samples or `synthetic` ones.
May import: base, data, run, model, train.
"""
