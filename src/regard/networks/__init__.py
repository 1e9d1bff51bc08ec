"""Published architectures, and the plain language model, assembled from blocks."""

from regard.networks.lm import LM, Config, LMState, fitted
from regard.networks.sampling import Sampling

__all__ = ["LM", "Config", "LMState", "Sampling", "fitted"]
