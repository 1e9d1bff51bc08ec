"""Attention through a few tokens between queries and keys."""
