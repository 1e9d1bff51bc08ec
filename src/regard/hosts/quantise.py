"""A model whose matrices are what a codec leaves of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from regard.codecs.named import codec_of
from regard.codecs.pyramid_vector import PyramidVector
from regard.codecs.weighed import encode_weighed
from regard.core.codec import Codec
from regard.core.errors import wrong

ROWS = 1 << 18
"""Numbers that are coded at once."""


class Quantised(AbstractContextManager["Quantised"]):
    """A model with coded matrices: for the length of a ``with`` block, or from `install` to `remove`.

    Args:
        matrices: of the model, by name. codec: of their rows. hessians: of matrices whose errors are weighed, by name.
    """

    def __init__(
        self, matrices: Mapping[str, Tensor], codec: Codec, hessians: Mapping[str, Tensor] | None = None
    ) -> None:
        self.matrices, self.codec, self.hessians = matrices, codec, hessians or {}
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
            matrix.copy_(torch.cat([self.through(name, rows) for rows in matrix.split(size)]))
        return self

    def through(self, name: str, rows: Tensor) -> Tensor:
        """What is left of some rows of a matrix."""
        if name not in self.hessians:
            return self.codec.through(rows)
        assert isinstance(self.codec, PyramidVector)
        codes = encode_weighed(self.codec, rows, self.hessians[name])
        return self.codec.decode(codes, rows.shape[1]).to(rows.dtype)

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


def quantise(
    model: nn.Module,
    codec: str | Codec = "pvq",
    *,
    names: Sequence[str] = (),
    texts: Iterable[Tensor] | None = None,
    **config: Any,
) -> Quantised:
    """What a model is like whose matrices take few bits: their rows are coded, and decoded again.

        with regard.quantise(model, "pvq(group=16, pulses=24)") as quantised:
            print(quantised.bits, quantised.bytes)
            out = model.generate(**batch)

    Every ``nn.Linear`` is coded, but for those that share their matrix with an embedding. Nothing is saved while the
    model runs: it computes with decoded matrices. What is told are the bits that the codes take.

    Args:
        model: any. codec: a name, a text or a codec; see `regard.codecs`. names: parts of the names of the layers that
            are meant, such as ``["self_attn"]``; all if left out. texts: token ids ``(n,)``, of pyramids alone: errors
            are weighed by what the layers are given while the model reads these, a matrix of each layer's is kept.
            config: the codec's arguments.

    Raises:
        LookupError: no such codec. TypeError: an argument that it does not take. ValueError: no such layer, rows
            that the codec cannot divide, no texts, or texts for a codec that does not weigh errors.
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
    made = codec_of(codec, **config)
    if texts is None:
        return Quantised(found, made)
    if not isinstance(made, PyramidVector):
        raise wrong("texts", f"some, for {made!r}", "none, or pvq, which weighs errors by what layers are given")
    return Quantised(found, made, hessians(model, list(found), texts))


@torch.no_grad()
def hessians(model: nn.Module, names: Sequence[str], texts: Iterable[Tensor]) -> dict[str, Tensor]:
    """The sum of ``z zᵀ (d, d)`` over the inputs z of linear layers, by name, while the model reads texts ``(n,)``."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            z = inputs[0].flatten(0, -2).float()
            found[name] = z.T @ z if name not in found else found[name] + z.T @ z

        return add

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in names]
    try:
        for ids in texts:
            model(ids[None].to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in found]
    if missing:
        raise wrong("texts", f"none that {missing[0]} was given anything of", "texts that all of these layers read")
    return found
