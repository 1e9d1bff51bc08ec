"""Skim-attention: a network that attends by the layout of a page."""
