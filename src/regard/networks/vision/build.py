"""Hierarchical networks of images by text: presets of papers, or what one writes."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from regard.core.errors import did_you_mean, wrong
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset
from regard.networks.vision import (
    agent_swin,
    biformer,
    davit,
    focalnet,
    l2vit_network,
    mambaout,
    maxvit,
    nat,
    patnet,
    shvit,
    simba,
    swin,
    twins,
)

FAMILIES: tuple[ModuleType, ...] = (
    agent_swin,
    biformer,
    davit,
    focalnet,
    l2vit_network,
    mambaout,
    maxvit,
    nat,
    patnet,
    shvit,
    simba,
    swin,
    twins,
)
"""The modules with presets."""


def presets() -> Mapping[str, Preset]:
    """All presets, by their names."""
    return {name: preset for module in FAMILIES for name, preset in module.PRESETS.items()}


def design(text: str) -> Design:
    """The design of a preset's name, or of ``"stages(widths=…, layers=…)"``.

    Raises:
        ValueError: neither. TypeError: an argument that there is not.
    """
    known = presets()
    if text in known:
        return known[text].design
    if "(" not in text:
        raise wrong("text", repr(text), f"stages(…), or one of {', '.join(known)}{did_you_mean(text, known)}")
    return Design.of(text)


def vision(text: str, classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """The hierarchical network of a preset or of a line of text.

        vision("davit_tiny", classes=10)
        vision("stages(widths=(64, 128), layers='cpe + windows(side=7) + mlp', heads=(2, 4))")

    Args:
        text: see `Design`. classes, channels, seed: see `Stages`.

    Raises:
        ValueError, LookupError, TypeError: what a text names and there is not.
    """
    return Stages(design(text), classes, channels, seed)
