"""Parts of scored mechanisms: scores, biases and normalisers, tile by tile."""
