"""Mechanisms whose A has low rank or decays: the past is a matrix of fixed size."""
