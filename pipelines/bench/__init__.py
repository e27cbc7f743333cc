"""Measured beside the peers.

`case` says what is compared, `race` times both sides in turns, `machine` describes the hardware, `report` prints results; every other file
is one benchmark, and `bench` runs them. May import: base, data, crew, pack, run, model, train.
"""
