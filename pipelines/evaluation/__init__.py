"""Measures a network on held-out data and records what was measured on what.

`subject` is the model on its data; `measure` what an evaluation is made of: `perplexity`, `classes`, `retrieval`, `fewshot` and `written`
texts (by `scores`) are some, with `intervals` and, of tokens, `likelihood`; `evaluate` runs one (`frontdoor` by its name in `kinds`);
`words` measures word vectors; `record` shows and compares what came out.
May import: base, data, run, model, train, inference.
"""
