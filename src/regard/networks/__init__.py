"""Published architectures, and the plain language model, assembled from blocks."""

from regard.networks.lm import LM, Config, LMState, fitted
from regard.networks.patterns import PatternNetwork
from regard.networks.sampling import Sampling
from regard.networks.twins import Twins
from regard.networks.vision import ViT

__all__ = ["LM", "Config", "LMState", "PatternNetwork", "Sampling", "Twins", "ViT", "fitted"]
