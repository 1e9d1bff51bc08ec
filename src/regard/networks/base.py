"""The contract of networks: whole models whose attention can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from regard.core.arguments import Configured
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism

T = TypeVar("T")


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


@contextmanager
def told_by(modules: Mapping[str, nn.Module], tell: Callable[[Any, tuple[Any, ...], Any], T]) -> Iterator[dict[str, T]]:
    """Collects what ``tell(module, inputs, output)`` says of each call of some modules, named like `attention_maps`."""
    found: dict[str, T] = {}

    def hear(name: str, module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        found[numbered(found, name)] = tell(module, given, out)

    hooks = [module.register_forward_hook(partial(hear, name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def modules_of(network: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """The modules of some classes in a network, by their names."""
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def numbered(taken: Mapping[str, Any], name: str) -> str:
    """The name, with the number of the call from the second on."""
    calls = sum(1 for other in taken if other.partition("#")[0] == name)
    return f"{name}#{calls + 1}" if calls else name
