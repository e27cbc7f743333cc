"""Trained networks on what people have: vectors, classes, summaries and translations of texts, pictures and whole data sets.

`embed`, `pictures` (by their regions: `region_pictures`), `texts`, `summarize` and `translate` answer for inputs; the last two cut long
texts into `pieces` of whole `sentences`, and go on with what a model was `trained` with. `vectors` of words say which are alike.
`bulk` runs one of `runners` over a data set in parts.
May import: base, data, crew, run, model.
"""
