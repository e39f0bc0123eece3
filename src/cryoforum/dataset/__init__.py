"""Nouns that all steps share: particles, poses, images, maps, predictions."""
