"""Benchmarks beside the peers.

`case` says what is compared, `race` times both sides in turns, `machine` describes the hardware, `report` prints results. `pairing`,
`systems` and `masked` hold each system with its peer, for training. Every other file is one benchmark, and `bench` runs them.
May import: base, data, crew, pack, run, model, train, serving.
"""
