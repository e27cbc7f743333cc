"""Who does the pieces of a command's work: this process, processes of this machine, or workers of a Ray cluster.

`crew` hands pieces out and repeats what is lost; `ray` does it on a cluster. May import: base.
"""
