"""Mechanisms that let each query see only some of the keys."""
