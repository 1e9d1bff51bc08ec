"""Attention as an ordinary differential equation in depth."""
