"""Watches that also note how long the values are: ``‖A_ij v_j‖ = A_ij ‖v_j‖`` follows from a number a key."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from regard.hosts.attachment import Spot
from regard.hosts.attention_arguments import Asked
from regard.hosts.attention_interface import host
from regard.hosts.edited_call import Outcome
from regard.hosts.lm_session import LMSession
from regard.hosts.slots import Slots
from regard.hosts.watch import Watched
from regard.networks import LM


def lengths(v: Tensor) -> Tensor:
    """``(kv_heads, m)`` float32: the Euclidean norms of the values ``v (1, kv_heads, m, e)`` of one sequence."""
    return v.detach()[0].float().norm(dim=-1)


class Looking(Watched):
    """A watch of a Transformers model."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.value_norms: dict[int, Tensor] = {}

    def observe(self, spot: Spot, asked: Asked, outcome: Outcome, slots: Slots | None) -> None:
        super().observe(spot, asked, outcome, slots)
        layer = next(layer.index for layer in self.layers if layer.name == spot.label)
        self.value_norms[layer] = lengths(asked.v)


class LookingAtLM(LMSession):
    """A watch of a model of ours; of layers that are linear in their values, alone, the norms are noted."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.value_norms: dict[int, Tensor] = {}

    def before(self, index: int, text: str) -> Callable[..., None]:
        shown = super().before(index, text)

        def show(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            shown(layer, arguments, named)
            if layer.mechanism.traits.linear and not self.layers[index].shares:
                told = {name: copy.copy(value) for name, value in named.items()}
                self.value_norms[index] = lengths(layer.inputs(*arguments, **told)[2])

        return show


@contextmanager
def looking(model: Any, *about: Any) -> Iterator[Looking | LookingAtLM]:
    """`hosts.watch.watch`, by a session that has ``value_norms`` too, ``(kv_heads, m)`` by layer where they are known.

    Args:
        about: as for `hosts.session.Session`.
    """
    session = LookingAtLM(model, *about) if isinstance(model, LM) else Looking(host(model), *about)
    try:
        session.install()
        yield session
    finally:
        session.remove()
