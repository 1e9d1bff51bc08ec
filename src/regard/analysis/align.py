"""Alignments that a translator's attention gives, and how far they are from known ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regard.core.errors import wrong


class Aligner(Protocol):
    """A network that tells which source tokens each target token attends to."""

    def alignment(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``(b, n, m)``."""
        ...


@dataclass(frozen=True)
class Alignment:
    """What each token of a target attends to.

    Args:
        soft: shares ``(b, n, m)``, of rows that may sum to less than one.
    """

    soft: Tensor

    @property
    def hard(self) -> Tensor:
        """``(b, n)``: the source token that has the largest share; −1 where more than half looks at none."""
        best, place = self.soft.max(-1)
        away = 1 - self.soft.sum(-1)
        return torch.where((away > best) & (away > 0.5), -1, place)

    def error(self, sure: Tensor, possible: Tensor | None = None) -> float:
        """The alignment error rate of the hard alignment: ``1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|)``.

        Args:
            sure: ``(b, n)`` places in the source, −1 for none; or links S ``(b, n, m)`` bool. possible: links P that
                count as right, with S among them; None for those of S. Rows without a sure or possible link count
                against what is aligned there.

        Raises:
            ValueError: links of another shape, or none.

        Paper: Och and Ney, 2003.
        """
        links = self.links(self.hard)
        s = self.links(sure) if sure.dim() == 2 else sure
        p = s if possible is None else possible | s
        if s.shape != links.shape or p.shape != links.shape:
            raise wrong("sure", f"shape {tuple(sure.shape)}", f"{tuple(links.shape[:2])} or {tuple(links.shape)}")
        count = int(links.sum() + s.sum())
        if count == 0:
            raise wrong("sure", "no links", "at least one")
        return 1 - int((links & s).sum() + (links & p).sum()) / count

    def links(self, places: Tensor) -> Tensor:
        """``(b, n, m)`` bool of places ``(b, n)``."""
        return places[..., None] == torch.arange(self.soft.shape[2], device=places.device)


def align(model: Aligner, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Alignment:
    """The alignment of targets with their sources by the attention of a translator such as `EncoderDecoder`.

    Args:
        model: anything with ``alignment(source, target, lengths)``. source, target: ids ``(b, m)`` and ``(b, n)``.
        lengths: of the sources, ``(b,)``.

    Raises:
        TypeError: a model that gives none.
    """
    if not callable(getattr(model, "alignment", None)):
        raise wrong("model", type(model).__name__, "one with alignment(source, target, lengths)", TypeError)
    return Alignment(model.alignment(source, target, lengths))
