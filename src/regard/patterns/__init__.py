"""Static supports: which entries of A may be non-zero, from positions alone."""

from regard.patterns.base import Pattern, PerHead
from regard.patterns.grid import GridTokens, Neighborhood, Plane, Radial, Same, Tiles
from regard.patterns.line import (
    Before,
    Blocks,
    Causal,
    Dilated,
    Global,
    GlobalKeys,
    GlobalQueries,
    Parts,
    Power,
    Random,
    Segments,
    Sinks,
    Strided,
    Window,
)
from regard.patterns.text import parse_pattern

__all__ = [
    "Before",
    "Blocks",
    "Causal",
    "Dilated",
    "Global",
    "GlobalKeys",
    "GlobalQueries",
    "GridTokens",
    "Neighborhood",
    "Parts",
    "Pattern",
    "PerHead",
    "Plane",
    "Power",
    "Radial",
    "Random",
    "Same",
    "Segments",
    "Sinks",
    "Strided",
    "Tiles",
    "Window",
    "parse_pattern",
]
