"""Mixtures of branches: what their weights sum to, and what they are where they begin."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import apart, drawn, stirred
from regard.featuremap.mixtures.switchable import SwitchableAtrous


def looped(m: Any, x: Tensor) -> Tensor:
    """Split attention group by group and split by split, as the paper's figure has it: cardinal groups apart."""
    groups, splits = m.groups, m.splits
    wide = m.out // groups
    maps = torch.relu(m.norm(m.convolution(x)))
    parts = [[maps[:, (r * groups + g) * wide :][:, :wide] for r in range(splits)] for g in range(groups)]
    sums = [torch.stack([split.mean((2, 3), keepdim=True) for split in group]).sum(0) for group in parts]
    hidden = torch.relu(m.hidden_norm(m.down(torch.cat(sums, 1))))
    found = []
    for g, group in enumerate(parts):
        rows, own = m.hidden // groups, slice(g * splits * wide, (g + 1) * splits * wide)
        numbers = hidden.flatten(1)[:, g * rows :][:, :rows] @ m.up.weight.flatten(1)[own].T + m.up.bias[own]
        exps = [numbers[:, r * wide :][:, :wide].exp() for r in range(splits)]
        shares = [e / torch.stack(exps).sum(0) for e in exps] if splits > 1 else [exps[0] / (1 + exps[0])]
        parted = zip(shares, group, strict=True)
        found.append(torch.stack([share[:, :, None, None] * split for share, split in parted]).sum(0))
    return torch.cat(found, 1)


@measured(splits=(1, 2, 4), groups=(1, 3))
def splits_and_groups(splits: int, groups: int) -> dict[str, float]:
    """One tensor of groups and splits against loops over both, and the weights' sums less one where there are two."""
    torch.manual_seed(splits)
    c = 4 * splits * groups
    m: Any = regard.mixture(f"split_attention(splits={splits}, groups={groups}, least=24)")(c).double().eval()
    maps = drawn(2, c, 5, 7)
    with torch.no_grad():
        sums = m.weights(maps, m.branches(maps)).sum(1)
        off = apart(sums, torch.ones_like(sums)) if splits > 1 else 0.0
        return {"apart": apart(m(maps), looped(m, maps)), "sum": off}


def is_its_loops(found: Figures) -> Finding:
    """Both to 1e-9."""
    worst, off = max(found("apart")), max(found("sum"))
    figure = f"equal to {worst:.0e} in {len(found.rows)} cases; two splits or more sum to one to {off:.0e}"
    return Finding.of(figure, worst < 1e-9, off < 1e-9)


@measured(stride=(1, 2))
def switched(stride: int) -> dict[str, float]:
    """A switchable convolution of a convolution: how far from it, and with S = 0 from the same kernel at rate 3."""
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 3, stride, 1, bias=False).double()
    made, maps = SwitchableAtrous.of(plain), drawn(2, 5, 9, 8)
    with torch.no_grad():
        start = apart(made(maps), plain(maps))
        nn.init.zeros_(made.switch.get_parameter("bias"))
        wide = F.conv2d(maps, plain.weight, stride=stride, padding=3, dilation=3)
        return {"start": start, "wide": apart(made(maps), wide)}


def is_both_convolutions(found: Figures) -> Finding:
    """Both to 1e-9."""
    start, wide = max(found("start")), max(found("wide"))
    return Finding.of(f"to {start:.0e} at the start, to {wide:.0e} with S = 0", start < 1e-9, wide < 1e-9)


@measured()
def shares() -> dict[str, float]:
    """The sums less one of the two weights for five maps of 40 channels, A2N's, and how much they differ between maps
    at least."""
    torch.manual_seed(0)
    made, maps = stirred(regard.mixture("attention_in_attention")(40)), drawn(5, 40, 5, 3)
    with torch.no_grad():
        found = made.weights(maps, made.branches(maps)).flatten(1)
    gaps = (found[:, None, 0] - found[None, :, 0]).abs() + torch.eye(5)
    return {"sum": apart(found.sum(1), torch.ones(5).double()), "gap": gaps.min().item()}


def are_of_the_map(found: Figures) -> Finding:
    """They sum to one to 1e-9 and differ between any two maps by more than rounding."""
    off, gap = max(found("sum")), min(found("gap"))
    return Finding.of(f"sums to one to {off:.0e}; any two maps differ by {gap:.1e} or more", off < 1e-9, gap > 1e-9)
