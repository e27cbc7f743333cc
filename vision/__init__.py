"""Families that read pictures, and what they share.

Families: `vit`, `mae`. `transforms` makes a network's pixels of a picture. `tower` is the image Transformer of ViT, MAE and CLIP, `resnet`
the convolutional trunk of CLIP. `classify` is for labelled pictures: the training examples, and a trained network as a classifier.
May import: shared.
"""
