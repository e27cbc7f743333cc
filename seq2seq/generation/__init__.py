"""Text out of a decoder or an encoder-decoder: greedy, sampled, or by beams, with a cache.

`decoder` is what a network must offer; `options` are the settings; `sampling` changes scores and draws; `search` decodes all rows or
beams; `streamer` turns ids into text as they come; `generate` ties them together. May import `shared` only.
"""
