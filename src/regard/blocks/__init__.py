"""What stands around a mechanism in a network: attention as a layer, signals, convolutions, the block itself."""
