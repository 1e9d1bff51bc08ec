"""A survey's taxonomy as tags of every mechanism of the atlas, read from what their classes claim of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from regard.core.atlas import Claim, Entry, entries, find, published
from regard.core.errors import did_you_mean, wrong

TAXONOMY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sequences": ("self", "distinctive", "co"),
        "levels": ("single", "multi"),
        "positions": ("soft", "hard", "local"),
        "representations": ("single", "multi_dimensional", "multi"),
    }
)
"""The survey's four dimensions, and what there is in each. Two tags are of networks, not of mechanisms: "co", where two
sequences attend to each other, and "multi", where several representations of one input are attended to."""
NETWORKS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "bidaf": {"sequences": "co", "levels": "single", "positions": "soft", "representations": "multi"},
        "multi_source": {
            "sequences": "distinctive",
            "levels": "multi",
            "positions": "soft",
            "representations": "multi",
        },
        "latent_monotonic": {
            **{"sequences": "distinctive", "levels": "single"},
            **{"positions": "hard", "representations": "single"},
        },
    }
)
"""Tags of networks, which classes do not declare: BiDAF reads words by vectors and by letters, several sources are
attended to one by one and then all, and a latent place is read alone."""
LEVELS = ("agent", "hip", "nsa", "routed_regions", "tree")
"""Mechanisms that attend to, or through, what stands for several tokens."""


@published(
    "attention_survey",
    family="theory",
    kind="study",
    row=22,
    title="An Attentive Survey of Attention Models",
    arxiv="1904.02874",
    year=2021,
    aliases=("attention_taxonomy",),
    fidelity="hand values",
    claim=(
        Claim(
            "every mechanism of the atlas has a tag in each of four dimensions, and every tag has a mechanism",
            cells="taxonomy.tagged",
            holds="taxonomy.are_tagged",
        ),
        Claim(
            "the first mechanism of every tag keeps the laws of shape, mask and gradient",
            cells="taxonomy.lawful",
            holds="taxonomy.are_lawful",
        ),
    ),
)
def tags(name: str) -> dict[str, str]:
    """The four tags of a mechanism, or of a network in `NETWORKS`, of the survey's taxonomy, by dimension.

    They follow from what its class declares: keys of another sequence are distinctive; FLOPs "at most" say that the
    data decide which pairs there are, which is hard; other patterns are local; weights of every channel are
    multi-dimensional. Only levels of abstraction are a list.

    Args:
        name: of an entry in the atlas.

    Raises:
        LookupError: no such entry. TypeError: an entry of another kind.

    Paper: Chaudhari et al., arXiv 1904.02874, section 3.
    """
    entry = find(name)
    if entry.name in NETWORKS:
        return dict(NETWORKS[entry.name])
    if entry.kind != "mechanism":
        raise wrong("name", f"{name!r}, a {entry.kind}", f"a mechanism, or one of {', '.join(NETWORKS)}", TypeError)
    return tags_of(entry)


def tags_of(entry: Entry) -> dict[str, str]:
    """`tags` of an entry."""
    made: Any = entry.thing
    traits, near = made.traits, ".sparse." in entry.where or entry.name in ("local_m", "local_p")
    channels = any(signal.side == "key" and signal.dim is not None for signal in made.signals.values())
    return {
        "sequences": "distinctive" if traits.cross else "self",
        "levels": "multi" if entry.name in LEVELS else "single",
        "positions": "hard" if traits.flops == "at most" else "local" if near else "soft",
        "representations": "multi_dimensional" if channels or not traits.linear else "single",
    }


def having(dimension: str, tag: str) -> Iterator[Entry]:
    """The mechanisms of the atlas with a tag, by name, and behind them the networks.

    Raises:
        LookupError: no such dimension or tag.
    """
    if dimension not in TAXONOMY:
        wanted = f"one of {', '.join(TAXONOMY)}{did_you_mean(dimension, TAXONOMY)}"
        raise wrong("dimension", repr(dimension), wanted, LookupError)
    if tag not in TAXONOMY[dimension]:
        raise wrong("tag", repr(tag), f"one of {', '.join(TAXONOMY[dimension])}", LookupError)
    for entry in entries(kind="mechanism"):
        if tags_of(entry)[dimension] == tag:
            yield entry
    yield from (find(name) for name, each in NETWORKS.items() if each[dimension] == tag)
