"""From a map to an image and back: CTF, projection, likelihood, noise."""
