"""Processing on the fly: particles are posed and reconstructed as data collection writes them."""
