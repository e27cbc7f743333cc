"""From shards to batches, in an order that every run, rank and worker agrees on.

`tar` and `remote/` read bytes; `index` says where each sample lies and `dataset` reads it and checks it; `order` says which sample stands
at a position; `stream` turns positions into an update's batches (`loader` in workers, `ahead` before they are needed); `held_out` reads
evaluation data once. May import: base.
"""
