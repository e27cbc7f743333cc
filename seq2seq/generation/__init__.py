"""Text out of a decoder or an encoder-decoder: greedy, sampled, or by beams, with a cache.

`decoder` is what a network must offer; `options` says how to write; `sampling` and `search` choose the next ids; `pieces` turns ids into
text as they come; `generate` ties them together. May import `shared` only.
"""
