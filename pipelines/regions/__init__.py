"""Regions of pictures as data: what `polymodal regions` adds to the samples of a data set.

`detectors` find them: a grid over an image tower's patches, a Faster R-CNN of torchvision, files made elsewhere. `codebook` gives the
regions of a grid classes; `regions` runs a detector over a data set, shard by shard.
May import: base, data, crew, pack, model.
"""
