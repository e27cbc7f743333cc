"""Who does the pieces of a command's work: this process, processes of this machine, or workers of a Ray cluster.

`pieces` says what a piece is and who does it; `ray` does pieces on a cluster; `crew` hands them out and raises the first error.
May import: base.
"""
