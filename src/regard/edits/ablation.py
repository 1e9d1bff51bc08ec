"""Head ablation: what a model does without the outputs of some heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regard.core.edit import Edit, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample


class HeadAblation(Edit):
    """Heads whose outputs are set to zero, or to a mean: z_h ← (1 − s) z_h + s · m_h.

    Zero with ``strength`` 1 is the model with these heads removed, exactly: their columns of the output projection meet
    nothing. A mean keeps what the head says whatever it reads.

    Args:
        heads: of all ``layers``, or a mapping from layer to heads. layers, rows, batch: see `core.edit.Where`.
        by: ``"zero"``; ``"mean"``, over the real tokens of the pass, of each sequence alone; or means of a corpus, a
            mapping from layer to ``(heads, e)``.
        strength: s; at 0 the model is as it was.

    Raises:
        ValueError: neither a way nor means; a layer without means.
    """

    dial: ClassVar[tuple[str, float] | None] = ("strength", 0.0)

    def __init__(
        self,
        heads: Sequence[int] | Mapping[int, Sequence[int]],
        by: Literal["zero", "mean"] | Mapping[int, Tensor] = "zero",
        *,
        strength: float = 1.0,
        layers: Sequence[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        super().__init__(Where(layers, heads, rows, batch=batch))
        if not isinstance(by, Mapping) and by not in ("zero", "mean"):
            raise wrong("by", repr(by), "'zero', 'mean', or means (heads, e) by layer")
        self.by, self.strength = by, strength

    def heads(self, z: Tensor, place: Place) -> Tensor:
        return torch.lerp(z, self.mean(z, place).to(z.dtype), self.strength)

    def mean(self, z: Tensor, place: Place) -> Tensor:
        """m, broadcastable to ``z (b, heads, n, e)``."""
        if isinstance(self.by, Mapping):
            if place.layer not in self.by:
                raise wrong("by", f"no means of layer {place.layer}", "means (heads, e) of every layer to ablate")
            return self.by[place.layer][None, :, None].expand_as(z)
        if self.by == "zero":
            return torch.zeros_like(z)
        real = place.queries[:, None, :, None]
        total = z.masked_fill(~real, 0).sum(2, keepdim=True)
        return (total / real.sum(2, keepdim=True).clamp(min=1)).expand_as(z)

    @classmethod
    def examples(cls) -> list[Sample]:
        means = {layer: torch.linspace(-1, 1, 24).view(6, 4) for layer in (0, 1)}
        return sampled(cls({0: [1, 4], 1: [2]}), cls([0, 1], means, strength=0.5, rows=slice(3, None)))
