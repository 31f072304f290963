"""Architectures for 224 x 224 colour images, with the module names of torchvision (layer 5)."""
