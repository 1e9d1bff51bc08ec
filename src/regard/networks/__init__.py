"""Published architectures, and the plain language model, assembled from blocks."""
