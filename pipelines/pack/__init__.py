"""From files of any common kind to WebDataset shards with an index.

`settings` says what a run is told; `sources` finds files and cuts them into units; `records` reads units (by `tables`) into records;
`spool` sorts them on disk in bounded memory; `cut` plans shards; `rows` fits documents into rows of tokens; `writer` writes shards;
`pack` runs all of it over a crew; `corpus` gives tokenizer training its texts. `segment` says where the words of texts begin; `similar`
finds words that are used alike, `cooccurrence` counts which stand near each other. May import: base, data, crew.
"""
