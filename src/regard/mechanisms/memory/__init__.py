"""Mechanisms whose past is a network that learns it while it reads."""
