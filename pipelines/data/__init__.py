"""From shards to batches, in an order that every run, rank and worker agrees on.

`tar` and `remote/` read bytes; `index` says where each sample lies and `dataset` reads it and checks it; `order` says which sample stands
at a position and `layout` which rank takes it; `samples` reads samples with their generators and partners, and `loader` makes batches of
them, in workers or here; `turns` says which task an update has; `stream` is all of this for training, with `ahead` fetching remote
shards before they are needed, and `account` is what is told about a stream; `held_out` reads evaluation data once. May import: base.
"""
