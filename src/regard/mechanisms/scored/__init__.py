"""Mechanisms that score each pair of query and key, then normalise the scores of a row."""
