"""Analyses: what a model's attention does, read from its weights and activations."""
