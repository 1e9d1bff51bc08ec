"""Published architectures, and the plain language model, assembled from blocks."""

from regard.networks.benchmark import BenchmarkNetwork
from regard.networks.lm import LM, Config, LMState, fitted
from regard.networks.sampling import Sampling
from regard.networks.stages.network import Stages
from regard.networks.vision.vit import ViT

__all__ = ["LM", "BenchmarkNetwork", "Config", "LMState", "Sampling", "Stages", "ViT", "fitted"]
