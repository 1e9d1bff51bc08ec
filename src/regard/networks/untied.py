"""A language model whose output matrix is its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.networks.lm import LM, Config


class UntiedLM(LM):
    """An `LM` whose logits are read by an output matrix of its own, not by the embeddings.

    Tied embeddings raise each token's own logit, which heads then have to take back; what the weights of a head do to
    the tokens that it reads is seen without that.

    Args:
        config, seed: as of `LM`.
    """

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        drawn = torch.randn(config.vocabulary, config.width, generator=torch.Generator().manual_seed(seed))
        self.output = nn.Parameter(drawn / config.width**0.5)

    def read(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.output)
