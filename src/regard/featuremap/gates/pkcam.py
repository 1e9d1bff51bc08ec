"""Channel attention that knows earlier stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import Factors, Gate, MapShape
from regard.featuremap.parts.mixes import adaptive, odd


@published(
    "pkcam",
    family="featuremap",
    kind="gate",
    row=178,
    title="PKCAM: Previous Knowledge Channel Attention Module",
    year=2022,
    fidelity="authors' code",
    claim=Claim(
        "all gates of a ResNet-20 together hold fewer than 300 weights, and the gradient reaches earlier stages",
        cells="featuremap.previous_knowledge",
        holds="featuremap.is_light_and_reaches_back",
    ),
)
class PreviousKnowledge(Gate):
    """Channels are weighed by their means and by those that earlier stages ended with: ``y = x (1 + g)``.

        local = σ(conv_k(d)),   d = mean(x)
        global = σ(conv_k(relu(w · [d_1 … d_s d])))
        g = σ(u · [local, global]);   without earlier stages g = local

    The descriptors d_1 … d_s ``(b, c')`` of earlier stages, stem included, are given as ``past`` and repeated to c
    channels; each weight in w (s + 1 of them) and u (2) is the same for all channels. In a stage's first block the
    authors use local alone. Parameters: k, or 2 k + s + 3.

    Args:
        channels: c. earlier: channels of the descriptors of earlier stages, divisors of c. kernel: k, None as in `eca`.

    Paper: Bakr et al., Previous Knowledge Channel Attention Module.
    """

    rule = "residual"

    def __init__(self, channels: int, earlier: tuple[int, ...] = (), kernel: int | None = None) -> None:
        super().__init__(channels)
        if any(number < 1 or channels % number for number in earlier):
            raise wrong("earlier", str(earlier), f"divisors of the {channels} channels")
        self.kernel, self.past = odd(adaptive(channels) if kernel is None else kernel), tuple(earlier)
        pad = self.kernel // 2
        self.local = nn.Conv1d(1, 1, self.kernel, padding=pad, bias=False)
        if earlier:
            self.stages = nn.Linear(len(earlier) + 1, 1, bias=False)
            self.wide = nn.Conv1d(1, 1, self.kernel, padding=pad, bias=False)
            self.pair = nn.Linear(2, 1, bias=False)

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        own = x.mean((2, 3))
        gate = torch.sigmoid(self.local(own[:, None]))[:, 0]
        if past:
            spread = [descriptor.repeat(1, self.channels // descriptor.shape[1]) for descriptor in past]
            fused = torch.relu(self.stages(torch.stack([*spread, own], 2))).mT
            wide = torch.sigmoid(self.wide(fused))[:, 0]
            gate = torch.sigmoid(self.pair(torch.stack((gate, wide), 2)))[..., 0]
        return {"c": gate[:, :, None, None]}

    @property
    def parameter_count(self) -> int:
        return 2 * self.kernel + len(self.past) + 3 if self.past else self.kernel

    def flops(self, shape: MapShape) -> int:
        return 2 * shape[0] * self.channels * self.parameter_count

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("pkcam", cls(12)), Sample("pkcam, two stages", cls(12, (3, 6)))]
