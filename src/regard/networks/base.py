"""The contract of networks: whole models whose attention can be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from regard.core.arguments import Configured
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism


class Network(Configured):
    """The base of every network.

    A subclass writes ``forward`` and ``examples``, and `intermediates` where its attention is no `Mechanism`.
    """

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """A ``(b, h, n, m)`` of each attention in one pass over the inputs of ``forward``, in the order of the calls.

        Of a mechanism that is not linear in its values, what `Mechanism.influence` shows.

        Names are those of the mechanisms' modules, with ``#2`` for the second call of one, and so on.
        """
        with attention_maps(self) as maps:
            self(*inputs, **named)
        return maps

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Small instances that the laws examine, ``given`` what goes in: see `regard.laws.network`."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """How many parameters there are; what is shared counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


@contextmanager
def attention_maps(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects A of each call of a `Mechanism` in the network, by the name of its module and the number of the call."""
    maps: dict[str, Tensor] = {}

    def seen(name: str, mechanism: Mechanism, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        q, k, v, *rest = (*given, *(named.pop(x) for x in ("q", "k", "v") if x in named))
        layout = rest[0] if rest else named.pop("layout", Layout())
        linear = mechanism.traits.linear
        shown = (
            mechanism.weights(q, k, layout, **named)
            if linear
            else mechanism.influence(q, k, v, layout, slice(None), **named)
        )
        maps[numbered(maps, name)] = shown

    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, named, name=name, module=module: seen(name, module, given, dict(named)), with_kwargs=True
        )
        for name, module in network.named_modules()
        if isinstance(module, Mechanism)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def numbered(taken: Mapping[str, Any], name: str) -> str:
    """The name, with the number of the call from the second on."""
    calls = sum(1 for other in taken if other.partition("#")[0] == name)
    return f"{name}#{calls + 1}" if calls else name
