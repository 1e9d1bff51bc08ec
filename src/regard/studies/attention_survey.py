"""A survey's taxonomy as tags of every mechanism of the atlas, read from what their classes claim of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from regard.core.atlas import Claim, Entry, entries, find, published
from regard.core.errors import did_you_mean, wrong

TAXONOMY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sequences": ("self", "distinctive"),
        "levels": ("single", "multi"),
        "positions": ("soft", "hard", "local"),
        "representations": ("single", "multi_dimensional"),
    }
)
"""The survey's four dimensions, and what a mechanism can be in each. Two tags are of networks, not of mechanisms:
"co-attention", where two sequences attend to each other (`bidaf`), and "multi-representational" (`multi_source`)."""
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
    missing="tags of networks: several representations, and co-attention of two sequences",
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
    """The four tags of a mechanism of the survey's taxonomy, by dimension.

    They follow from what its class declares: keys of another sequence are distinctive; FLOPs "at most" say that the
    data decide which pairs there are, which is hard; other patterns are local; weights of every channel are
    multi-dimensional. Only levels of abstraction are a list.

    Args:
        name: of a mechanism in the atlas.

    Raises:
        LookupError: no such entry. TypeError: an entry of another kind.

    Paper: Chaudhari et al., arXiv 1904.02874, section 3.
    """
    entry = find(name)
    if entry.kind != "mechanism":
        raise wrong("name", f"{name!r}, a {entry.kind}", "a mechanism", TypeError)
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
    """The mechanisms of the atlas with a tag, by name.

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
