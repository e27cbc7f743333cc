"""From files of any common kind to WebDataset shards with an index.

`sources` reads text, tables, folders and tars as records; `spool` sorts them on disk in bounded memory; `rows` fits documents into rows of
tokens; `writer` writes shards; `pack` runs all of it over a crew; `corpus` gives tokenizer training its texts.
May import: base, data, crew.
"""
