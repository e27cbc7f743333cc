"""`polymodal demo`: from raw files to a report, through the commands that a user types.

`data` finds real text and pictures, `demo` runs the commands, `page` writes what came out. May import: base, data, run, inspection, and the
command line.
"""
