"""What stands around a mechanism in a network: projections, positions, the block itself."""
