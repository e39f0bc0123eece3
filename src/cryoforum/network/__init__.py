"""The network: images in, posteriors of orientations out; and the folder that a trained one lives in."""
