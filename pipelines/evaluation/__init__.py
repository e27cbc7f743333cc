"""Measures a network on held-out data and records what was measured on what.

`evaluate` runs one task: `perplexity`, `classes`, `retrieval` or `written` texts (by `scores`), with `intervals`.
May import: base, data, run, model, train, inference.
"""
