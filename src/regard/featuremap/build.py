"""From a text to gates, mixtures and necks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from regard.core.atlas import find
from regard.core.build import arguments_of
from regard.core.errors import a, wrong
from regard.core.spec import parse, split_outside
from regard.featuremap.gate import Gate, Series
from regard.featuremap.mixture import Mixture
from regard.featuremap.neck import Neck, NeckChain

T = TypeVar("T", bound=nn.Module)


@dataclass(frozen=True)
class Factory(Generic[T]):
    """The base of what makes things of a text, for sizes that come later.

    A subclass says the `kind`, and how its things are made in ``__call__``.

    Args:
        text: of one thing, or of several one after the other where the kind has series: ``"se | spatial"``.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that it does not take.
        ValueError: a series of a kind that has none.
    """

    text: str
    kind: ClassVar[str]
    series: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.parts()) > 1 and not self.series:
            raise wrong(self.kind, repr(self.text), "one alone")

    def parts(self) -> list[tuple[type[T], dict[str, Any]]]:
        """The class and the arguments of each thing."""
        return [known(self.kind, part) for part in split_outside(self.text, "|")]

    def takes(self, argument: str) -> bool:
        """Whether it is one thing whose constructor has this argument."""
        parts = self.parts()
        return len(parts) == 1 and argument in arguments_of(self.text, parts[0][0], {})


class GateFactory(Factory[Gate]):
    """What makes gates of a text for any number of channels, as timm's ``attn_layer`` and `insert` take it."""

    kind = "gate"

    def __call__(
        self,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **more: Any,
    ) -> Gate:
        """A gate for so many channels, on ``device`` and of ``dtype``; ``more`` is for each of its parts."""
        made = [thing(channels, **config, **more) for thing, config in self.parts()]
        return (made[0] if len(made) == 1 else Series(*made)).to(device=device, dtype=dtype)


class MixtureFactory(Factory[Mixture]):
    """What makes mixtures of a text for any number of channels."""

    kind, series = "mixture", False

    def __call__(
        self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Mixture:
        """A mixture for so many channels, on ``device`` and of ``dtype``."""
        ((thing, config),) = self.parts()
        return thing(channels, **config).to(device=device, dtype=dtype)


class NeckFactory(Factory[Neck]):
    """What makes necks of a text for any pyramid."""

    kind = "neck"

    def __call__(
        self,
        channels: Sequence[int],
        out: int | Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Neck:
        """A neck for maps of these channels, fine to coarse, which gives maps of ``out``: one number, or one for each
        map where the neck has levels of several."""
        made: list[Neck] = []
        parts: list[tuple[Any, dict[str, Any]]] = [*self.parts()]
        for thing, config in parts:
            made.append(thing(tuple(made[-1].widths) if made else tuple(channels), out, **config))
        return (made[0] if len(made) == 1 else NeckChain(*made)).to(device=device, dtype=dtype)


def gate(text: str) -> GateFactory:
    """What makes the gates that ``text`` names: ``gate("triplet(kernel=7)")(channels=64)``; see `Factory`."""
    return GateFactory(text)


def mixture(text: str) -> MixtureFactory:
    """What makes the mixtures that ``text`` names: ``mixture("split_attention(splits=2)")(channels=64)``; see
    `Factory`."""
    return MixtureFactory(text)


def neck(text: str) -> NeckFactory:
    """What makes the necks that ``text`` names: ``neck("fpn")((64, 128, 256, 512), out=64)``; see `Factory`."""
    return NeckFactory(text)


def known(kind: str, text: str) -> tuple[type, dict[str, Any]]:
    """The class of this ``kind`` that a text names, and the arguments in it."""
    spec = parse(text, kind)
    with spec.underlined():
        entry = find(spec.name)
        if entry.kind != kind:
            raise wrong(kind, f"{spec.name!r}, {a(entry.kind)}", f"one of regard.entries(kind={kind!r})", TypeError)
        arguments_of(spec.name, entry.thing, spec.arguments)
    return entry.thing, dict(spec.arguments)
