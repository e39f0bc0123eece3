"""Processing on the fly: particles are aligned and reconstructed as data collection writes them."""
