"""Hierarchical networks of images: a stem, stages of blocks at falling resolutions, a head."""
