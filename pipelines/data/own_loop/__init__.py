"""Samples for people with a training loop of their own: `polymodal.stream`.

Stages: `stream` (the public function), `exact` (indexed data: the order of `order.py`, resumable by one integer, and its loader), `weak`
(what has no index: webdataset's own pipeline), `decode` (the fields of a sample). May import: the data room, and webdataset in `weak`.
"""
