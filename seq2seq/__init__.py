"""Generative and sequence-to-sequence families, one file each."""
