"""The loop and what stands around it.

In the order of a run: `start` finds the first weights, `preflight` checks, `begin` takes the directory, `devices` (`fabric`, `sharding`)
sets up, `loop` makes the updates, with `meter` measuring, `health` judging gradients, `best` judging evaluations, `heartbeat` telling
that a rank lives, `stop` ending in good order and `trace` profiling; `job` is the state of it all. May import: base, data, run, model.
"""
