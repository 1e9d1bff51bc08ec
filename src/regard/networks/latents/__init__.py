"""Latents: a few vectors that read an array of any length, and may write back to it."""
