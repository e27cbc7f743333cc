"""Trained networks on what people have: vectors, classes and summaries of texts, pictures and whole data sets.

`embed`, `pictures`, `texts` and `summarize` (by `sentences`) answer for inputs; `bulk` runs one of `runners` over a data set in parts.
May import: base, data, crew, run, model.
"""
