"""Heads made louder, softer or more certain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor

from regard.core.edit import Edit, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.tilt import Heads


class HeadScale(Edit):
    """The outputs of some heads times a factor: z_h ← c z_h; 0 ablates, −1 reverses.

    Args:
        heads: of all ``layers``, or a mapping from layer to heads. factor: c. layers, rows, batch: see `Where`.
    """

    dial: ClassVar[tuple[str, float] | None] = ("factor", 1.0)

    def __init__(
        self,
        heads: Heads | None = None,
        factor: float = 0.0,
        *,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        super().__init__(Where(layers, heads, rows, batch=batch))
        self.factor = factor

    def heads(self, z: Tensor, place: Place) -> Tensor:
        return z * self.factor

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(cls([0, 3], 0.5), cls({1: [2]}, -1.0, rows=slice(2, 9)))


class Temperature(Edit):
    """Attention made sharper or flatter: A_i = softmax(s_i / T), of the model's own scaled products.

    Biases and caps that the model has act as before on the products.

    Args:
        temperature: T, above 0. heads, layers, rows, batch: see `Where`.
    """

    dial: ClassVar[tuple[str, float] | None] = ("temperature", 1.0)

    def __init__(
        self,
        temperature: float,
        *,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if not temperature > 0:
            raise wrong("temperature", str(temperature), "a number above 0; 1 changes nothing")
        super().__init__(Where(layers, heads, rows, batch=batch))
        self.temperature = temperature

    def queries(self, q: Tensor, k: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        return q / self.temperature, k

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(cls(0.5), cls(2.0, heads=[1, 4], layers=[1]))
