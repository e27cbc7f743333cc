"""Everything that drives a system: packing, streaming, training, serving, the command line."""
