"""Crossed refinement: the sizes of its two forms, and what of which map they read."""

from __future__ import annotations

from typing import Any

import torch

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.necks import pyramid
from regard.claims.testbeds.maps import apart, count, stirred

WIDTHS, DUAL = (16, 16, 32, 64), (16, 32, 64, 64)


def made(text: str) -> Any:
    """A neck of the authors' widths, all of its parameters moved."""
    torch.manual_seed(0)
    channels, out = (WIDTHS, (16, 32, 64)) if text == "cpdr" else (DUAL, (8, 16, 32))
    return stirred(regard.neck(text)(channels, out=out))


@measured()
def sizes() -> dict[str, int]:
    """Parameters of both forms at the authors' widths."""
    return {"both": count(made("cpdr")), "dual": count(made("dacf"))}


def is_less(found: Figures) -> Finding:
    """The dual one has fewer."""
    both, dual = found.one("both"), found.one("dual")
    return Finding.of(f"{dual:,} parameters, {both:,} in two passes", dual < both)


@measured()
def means() -> dict[str, float]:
    """The two passes with the coarsest map, and with its cells in another order."""
    neck, maps = made("cpdr"), pyramid(WIDTHS, 24, 17)
    turned = [*maps[:-1], maps[-1].flip(2, 3)]
    with torch.no_grad():
        return {"apart": max(apart(one, other) for one, other in zip(neck(maps), neck(turned), strict=True))}


@measured()
def dual_reads() -> dict[str, str]:
    """The maps that each level of the dual fusions depends on."""
    neck, maps, read = made("dacf"), [each.requires_grad_() for each in pyramid(DUAL, 24, 17)], []
    for level in neck(maps):
        gradients = torch.autograd.grad(level.square().sum(), maps, retain_graph=True, allow_unused=True)
        read.append("".join(str(n) for n, g in enumerate(gradients) if g is not None and bool(g.abs().max() > 0)))
    return {"read": " ".join(read)}


def reads_the_coarser(found: Figures) -> Finding:
    """Its own map and the coarser ones."""
    read = found.one("read")
    return Finding.of(f"levels fine to coarse depend on maps {read.replace(' ', ', ')}", read == "0123 123 23")
