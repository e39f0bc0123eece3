"""Processing on the fly: particles are posed and reconstructed as data collection writes them."""

from cryoforum.watching.watch import WatchOptions, watch

__all__ = ["WatchOptions", "watch"]
