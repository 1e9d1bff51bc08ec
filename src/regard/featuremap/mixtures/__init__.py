"""Published mixtures, a file each."""
