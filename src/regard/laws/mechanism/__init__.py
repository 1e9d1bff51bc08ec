"""The laws of mechanisms: what A must satisfy."""
