"""Networks by name or directory: load, save, export, and faster forms for inference.

`frontdoor` is the public interface; `weights` reads and writes files; `companions` opens networks that another one is trained beside;
`quantize` and `prepack` replace `linears`; `export` turns a run into a directory that the reference library loads. May import: base, run.
"""
