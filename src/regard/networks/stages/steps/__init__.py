"""What a block of a hierarchical network is made of."""
