"""A model whose matrices are what a codec leaves of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from regard.codecs.named import codec_of
from regard.core.codec import Codec
from regard.core.errors import wrong

ROWS = 1 << 18
"""Numbers that are coded at once."""


class Quantised(AbstractContextManager["Quantised"]):
    """A model with coded matrices: for the length of a ``with`` block, or from `install` to `remove`.

    Args:
        matrices: of the model, by name. codec: of their rows.
    """

    def __init__(self, matrices: Mapping[str, Tensor], codec: Codec) -> None:
        self.matrices, self.codec = matrices, codec
        sizes = [matrix.numel() for matrix in matrices.values()]
        self.bits = sum(n * codec.bits(m.shape[1]) for n, m in zip(sizes, matrices.values(), strict=True)) / sum(sizes)
        """Bits a number of these matrices, packed."""
        self.bytes = int(self.bits * sum(sizes) / 8)
        """Of these matrices, packed; the model itself computes with what was decoded, in its own precision."""
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def install(self) -> Quantised:
        """Puts the decoded matrices in.

        Raises:
            RuntimeError: they are in.
        """
        if self.kept:
            raise wrong("model", "one that is quantised already", "one whose matrices are its own", RuntimeError)
        for name, matrix in self.matrices.items():
            self.kept[name] = matrix.detach().clone()
            size = max(1, ROWS // matrix.shape[1])
            matrix.copy_(torch.cat([self.codec.through(rows) for rows in matrix.split(size)]))
        return self

    @torch.no_grad()
    def remove(self) -> None:
        """Puts the model's own matrices back, bit by bit."""
        for name, own in self.kept.items():
            self.matrices[name].copy_(own)
        self.kept = {}

    def __enter__(self) -> Quantised:
        return self if self.kept else self.install()

    def __exit__(self, *exception: object) -> None:
        self.remove()


def quantise(model: nn.Module, codec: str | Codec = "pvq", *, names: Sequence[str] = (), **config: Any) -> Quantised:
    """What a model is like whose matrices take few bits: their rows are coded, and decoded again.

        with regard.quantise(model, "pvq(group=16, pulses=24)") as quantised:
            print(quantised.bits, quantised.bytes)
            out = model.generate(**batch)

    Every ``nn.Linear`` is coded, but for those that share their matrix with an embedding. Nothing is saved while the
    model runs: it computes with decoded matrices. What is told are the bits that the codes take.

    Args:
        model: any. codec: a name, a text or a codec; see `regard.codecs`. names: parts of the names of the layers that
            are meant, such as ``["self_attn"]``; all if left out. config: the codec's arguments.

    Raises:
        LookupError: no such codec. TypeError: an argument that it does not take. ValueError: no such layer, or rows
            that the codec cannot divide.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module.weight) not in shared
        and (not names or any(part in name for part in names))
    }
    if not found:
        raise wrong("names", f"{list(names)}, in none of the model's linear layers", "parts of their names")
    return Quantised(found, codec_of(codec, **config))
