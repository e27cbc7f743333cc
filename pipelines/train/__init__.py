"""The loop and what stands around it.

In the order of a run: `start` finds the first weights, `preflight` checks, `begin` takes the directory, `devices` (`fabric`) sets up, with
weights divided (`sharding`) and layers compiled or recomputed (`layers`). `loop` makes the updates; `state` is all that a run in progress
consists of. It asks `totals` for the counts of all ranks, `meter` and `clock` for what to log, `health` whether a gradient is sound and
`rewind` what to do if not (`events` reads what was done), `best` whether evaluations still get better, `stop` whether it was asked to end,
and tells `heartbeat` that a rank lives and `trace` when to profile. May import: base, data, run, model.
"""
