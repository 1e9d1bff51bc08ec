"""Experiments: cells that measure themselves, where their rows are kept, and how they are run and queried."""
