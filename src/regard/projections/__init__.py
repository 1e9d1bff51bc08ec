"""Projections: how queries, keys and values come from hidden states, and what a cache holds."""
