"""Families that read pictures and texts.

Families: `clip`, with its configs in `clip_config` and the files of other libraries in `clip_formats`. `pairs` makes training examples of
pictures with captions; `pretrained_text` makes a text trunk of another family's encoder; `zero_shot` classifies pictures by the names of
classes. May import: shared, text, vision, seq2seq.
"""
