"""Published architectures, and the plain language model, assembled from blocks."""

from regard.networks import algorithm as algorithm
from regard.networks import broadcast as broadcast
from regard.networks import chela as chela
from regard.networks import deconstructed as deconstructed
from regard.networks import l2vit as l2vit
from regard.networks import ode as ode
from regard.networks import shortcuts as shortcuts
from regard.networks import skim as skim
from regard.networks import transnormer as transnormer
from regard.networks import waves as waves
from regard.networks.lm import LM, Config, LMState, fitted
from regard.networks.patterns import PatternNetwork
from regard.networks.sampling import Sampling
from regard.networks.twins import Twins
from regard.networks.vision import ViT

__all__ = ["LM", "Config", "LMState", "PatternNetwork", "Sampling", "Twins", "ViT", "fitted"]
