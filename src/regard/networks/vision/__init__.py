"""Vision transformers."""

from regard.networks.vision.vit import ViT

__all__ = ["ViT"]
