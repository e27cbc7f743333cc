"""`polymodal demo`: from raw files to a report, through the commands that a user types.

`data` finds real text and pictures, `story` runs commands and keeps what they found, `pace` plans the length
of runs, `page` shows it, `demo` is the whole.
May import: base, data, run, inspection.
"""
