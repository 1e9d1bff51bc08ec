"""Mechanisms broken in one way each. A law that rejects none of its mutants is not a law."""
