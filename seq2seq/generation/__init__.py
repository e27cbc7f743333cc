"""Text out of a decoder or an encoder-decoder: greedy, sampled, or by beams, with a cache.

`options` are the settings, with the `defaults` that a model brings along; `sampling` changes scores and draws; `search` decodes all rows or
beams; `streamer` turns ids into text as they come; `logprobs` says how probable they are; `batch` writes the texts of one batch, `generate`
those of any number of prompts, `examples` before them or not. May import `shared` only.
"""
