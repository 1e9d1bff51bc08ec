"""From a text to gates, mixtures and necks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regard.core.atlas import find
from regard.core.build import arguments_of
from regard.core.errors import a, wrong
from regard.core.spec import parse, split_outside
from regard.featuremap.gate import Gate, Series
from regard.featuremap.mixture import Mixture
from regard.featuremap.neck import Neck, NeckChain


@dataclass(frozen=True)
class GateFactory:
    """What makes gates of a text for any number of channels, as timm's ``attn_layer`` and `insert` take it.

    Args:
        text: of one gate, or of several one after the other: ``"eca"``, ``"triplet(kernel=7)"``, ``"se | spatial"``.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that it does not take.
    """

    text: str

    def __post_init__(self) -> None:
        self.parts()

    def parts(self) -> list[tuple[type[Gate], dict[str, Any]]]:
        """The class and the arguments of each gate."""
        return [known("gate", part) for part in split_outside(self.text, "|")]

    def __call__(
        self,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **more: Any,
    ) -> Gate:
        """A gate for so many channels, on ``device`` and of ``dtype``; ``more`` is for each of its parts."""
        made = [thing(channels, **config, **more) for thing, config in self.parts()]
        gate = made[0] if len(made) == 1 else Series(*made)
        return gate.to(device=device, dtype=dtype)

    def takes(self, argument: str) -> bool:
        """Whether it is one gate whose constructor has this argument."""
        parts = self.parts()
        return len(parts) == 1 and argument in arguments_of(self.text, parts[0][0], {})


def gate(text: str) -> GateFactory:
    """What makes the gates that ``text`` names: ``gate("triplet(kernel=7)")(channels=64)``.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that it does not take.
    """
    return GateFactory(text)


@dataclass(frozen=True)
class MixtureFactory:
    """What makes mixtures of a text for any number of channels.

    Args:
        text: of one mixture: ``"split_attention(splits=2)"``.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that it does not take.
    """

    text: str

    def __post_init__(self) -> None:
        known("mixture", self.text)

    def __call__(
        self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Mixture:
        """A mixture for so many channels, on ``device`` and of ``dtype``."""
        thing, config = known("mixture", self.text)
        return thing(channels, **config).to(device=device, dtype=dtype)


def mixture(text: str) -> MixtureFactory:
    """What makes the mixtures that ``text`` names: ``mixture("split_attention(splits=2)")(channels=64)``.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that it does not take.
    """
    return MixtureFactory(text)


@dataclass(frozen=True)
class NeckFactory:
    """What makes necks of a text for any pyramid.

    Args:
        text: of one neck, or of several one after the other: ``"fpn"``, ``"fpn(extra=2) | sepc"``.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that it does not take.
    """

    text: str

    def __post_init__(self) -> None:
        self.parts()

    def parts(self) -> list[tuple[type[Neck], dict[str, Any]]]:
        """The class and the arguments of each neck."""
        return [known("neck", part) for part in split_outside(self.text, "|")]

    def __call__(
        self,
        channels: Sequence[int],
        out: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Neck:
        """A neck for maps of these channels, fine to coarse, which gives maps of ``out``."""
        made: list[Neck] = []
        for thing, config in self.parts():
            made.append(thing((out,) * len(made[-1].reads) if made else tuple(channels), out, **config))
        neck = made[0] if len(made) == 1 else NeckChain(*made)
        return neck.to(device=device, dtype=dtype)


def neck(text: str) -> NeckFactory:
    """What makes the necks that ``text`` names: ``neck("fpn")((64, 128, 256, 512), out=64)``.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that it does not take.
    """
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
