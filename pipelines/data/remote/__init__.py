"""Bytes that lie behind http(s), s3 or gs.

`transport` makes one request; `fetch` repeats, resumes and checks it; `cache` keeps whole shards for all processes of a machine;
`location` is what a data set asks: a file here, or bytes from there. May import: base.
"""
