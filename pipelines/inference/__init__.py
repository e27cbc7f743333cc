"""Trained networks on what people have: vectors, classes, summaries and translations of texts, pictures and whole data sets.

`embed`, `pictures` (by their regions: `region_pictures`), `texts`, `words`, `summarize` and `translate` answer for inputs (`ask`:
in Python); the last two cut long texts into `pieces` of whole `sentences`, and go on with what a model was `trained` with. `vectors` of
words say which are alike; `search` finds in files of `embedded` texts and pictures. `augment` makes copies of labelled texts with
other words.
`bulk` runs one of `runners` over a data set in parts.
May import: base, data, crew, run, model.
"""
