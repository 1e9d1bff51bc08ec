"""Gates and mixtures of feature maps: what they add to a network, which cells a factor reads, and their limits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.maps import apart, count, drawn, stirred
from regard.experiments.cell import Cell
from regard.featuremap.composed import Composed

RESNET50 = (256,) * 3 + (512,) * 4 + (1024,) * 6 + (2048,) * 3
"""The channels of each block's output."""


def weights(module: nn.Module) -> int:
    """How many of them belong to convolutions and matrices."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


def seeded(text: str) -> Any:
    """What builds a gate of so many channels, from the same random numbers every time."""
    torch.manual_seed(0)
    return regard.gate(text)


@measured(gate=["se"])
def added(gate: str) -> dict[str, int]:
    """The parameters of a gate in each of the 16 blocks of ResNet-50, together, and those of SE."""
    total, squeezed = (sum(count(seeded(text)(c)) for c in RESNET50) for text in (gate, "se"))
    return {"parameters": total, "se": squeezed}


def adds(gate: str) -> Cell:
    """What this gate adds to ResNet-50."""
    return added.cell(gate=gate)


def is_printed(
    found: Figures, printed: float, digits: int = 1, unit: float = 1e6, name: str = "M", figure: str = "parameters"
) -> Finding:
    """Every cell's figure is the printed one, rounded to its digits."""
    own = found(figure)
    return Finding.of(
        f"{listed(own, ',')}, printed {printed:g} {name}", all(round(each / unit, digits) == printed for each in own)
    )


def is_beyond_se(found: Figures, more: int) -> Finding:
    """So many parameters a block more than SE has."""
    own, se = found.one("parameters"), found.one("se")
    return Finding.of(f"{own:,} parameters, SE {se:,}", own - se == more * len(RESNET50))


@measured()
def eca_on_resnet50() -> dict[str, int]:
    """ECA's weights in ResNet-50 with the kernels of the formula, with five everywhere, with the released ones."""
    released = {256: 3, 512: 5, 1024: 5, 2048: 7}
    texts = {"formula": "eca", "five": "eca(kernel=5)", "released": "eca(kernel={})"}
    found = {name: sum(count(seeded(t.format(released[c]))(c)) for c in RESNET50) for name, t in texts.items()}
    return found | {"se": sum(count(seeded("se")(c)) for c in RESNET50)}


def is_eighty(found: Figures) -> Finding:
    """80 with five everywhere and with the released kernels; whatever the kernels, under 0.01% of SE's."""
    formula, five, released, se = (found.one(name) for name in ("formula", "five", "released", "se"))
    figure = f"{five} with k = 5, {released} with the released kernels, {formula} by the formula; SE {se:,}"
    return Finding.of(figure, five == released == 80, max(formula, five, released) < 1e-4 * se)


@measured(gate=("se(ratio=4)", "ese", "eca"))
def ranks(gate: str) -> dict[str, int]:
    """The rank of the factors' Jacobian by the means of 16 channels, the highest at eight points."""
    made: Any = seeded(gate)(16).double().eval()

    def factors(means: Tensor) -> Tensor:
        return made.factors(means.view(1, 16, 1, 1))["c"].flatten()

    jacobians: list[Any] = [torch.autograd.functional.jacobian(factors, drawn(16, seed=seed)) for seed in range(8)]
    return {"rank": max(int(torch.linalg.matrix_rank(each)) for each in jacobians)}


def keeps_all_channels(found: Figures, gate: str) -> Finding:
    """The rank is 16; SE's is one at least and that of its bottleneck, four, at most."""
    own, se = found.one("rank", gate=gate), found.one("rank", gate="se(ratio=4)")
    return Finding.of(f"rank {own} of 16, SE of ratio 4 has {se}", own == 16, 1 <= se <= 4)


def seen_by(factor: Tensor, maps: Tensor) -> Tensor:
    """Which cells ``(y, x)`` a factor depends on."""
    (gradient,) = torch.autograd.grad(factor, maps)
    return gradient[0].abs().sum(0) > 0


def crossed(seen: Tensor, long: int, wide: int) -> dict[str, int]:
    """How many cells are seen, and how many differ from a cross of two bars around the middle one."""
    rows, columns = ((torch.arange(size) - size // 2).abs() for size in seen.shape)
    rows = rows[:, None]
    bars = [(rows <= a // 2) & (columns <= b // 2) for a, b in ((long, wide), (wide, long))]
    return {"cells": int(seen.sum()), "wrong": int((seen != (bars[0] | bars[1])).sum())}


@measured(gate=["spatial"], long=[7], wide=[7])
def reach(gate: str, long: int, wide: int) -> dict[str, int]:
    """The cells of a map of 41 × 43 that the middle cell's factor depends on, against a cross of these sizes."""
    made, maps = stirred(seeded(gate)(16)), drawn(1, 16, 41, 43).requires_grad_()
    return crossed(seen_by(made.scale(maps)[0, :, 20, 21].sum(), maps), long, wide)


def reaches(gate: str, long: int, wide: int) -> Cell:
    """What a factor of this gate depends on."""
    return reach.cell(gate=gate, long=long, wide=wide)


@measured()
def large_kernel() -> dict[str, int]:
    """Likewise of SDLSKA's numbers before its selection, with the kernel of 35, against bars of 35 × 5."""
    made, maps = stirred(seeded("sdlska(kernel=35)")(3)), drawn(1, 3, 41, 43).requires_grad_()
    near = made.square(maps)
    held = made.mix(near + made.row(near) + made.column(near))
    return crossed(seen_by(held[0, :, 20, 21].sum(), maps), 35, 5)


def is_the_cross(found: Figures) -> Finding:
    """No cell beyond it, and none of it missing."""
    wrong, cells = sum(found("wrong")), listed(found("cells"), "d")
    return Finding.of(f"{cells} cells of 41 × 43, {wrong} otherwise than said", wrong == 0)


def written_out(made: Composed, maps: Tensor, paper: str) -> Tensor:
    """The factors by a paper's equation from a gate's weights."""
    own: dict[str, Any] = dict(made.named_parameters())
    means = maps.mean((2, 3))
    if paper == "gc":
        scores = (maps * own["pools.0.score.weight"].view(1, -1, 1, 1)).sum(1) + own["pools.0.score.bias"].view(())
        means = (maps.flatten(2) @ scores.flatten(1).softmax(1)[:, :, None])[:, :, 0]
    if paper in ("se", "gc"):
        hidden = F.linear(means, own["mix.first.weight"].flatten(1), own["mix.first.bias"])
        if paper == "gc":
            hidden = F.layer_norm(hidden, hidden.shape[1:], own["mix.norm.weight"], own["mix.norm.bias"])
        numbers = F.linear(torch.relu(hidden), own["mix.second.weight"].flatten(1), own["mix.second.bias"])
        return torch.sigmoid(numbers)[:, :, None, None]
    if paper == "ese":
        numbers = F.linear(means, own["mix.linear.weight"].flatten(1), own["mix.linear.bias"])
        return (numbers / 6 + 0.5).clamp(0, 1)[:, :, None, None]
    if paper == "eca":
        kernel = own["mix.convolution.weight"].flatten()
        padded = F.pad(means, (len(kernel) // 2,) * 2)
        return torch.sigmoid(padded.unfold(1, len(kernel), 1) @ kernel)[:, :, None, None]
    both = torch.stack((maps.amax(1), maps.mean(1)), 1)
    mixed = F.conv2d(both, own["mix.convolutions.0.weight"], padding=3) / (1 + 1e-5) ** 0.5
    return torch.sigmoid(mixed * own["mix.norms.0.weight"].view(()) + own["mix.norms.0.bias"].view(()))


PARTS: dict[str, dict[str, Any]] = {
    "se": {"mix": "mlp(ratio=3)"},
    "ese": {"mix": "dense", "squash": "hard_sigmoid"},
    "eca": {"mix": "conv1d(kernel=3)"},
    "gc": {"pool": "query", "mix": "mlp(ratio=3, norm=layer)"},
    "spatial": {"over": "c", "pool": "z", "mix": "conv2d(kernel=7)"},
}


@measured(paper=tuple(PARTS))
def parts(paper: str) -> dict[str, float]:
    """How far the factors of parts put together are from the paper's equation, on a map of 12 × 9 × 7."""
    torch.manual_seed(0)
    made, maps = stirred(Composed(12, **PARTS[paper])), drawn(2, 12, 9, 7)
    with torch.no_grad():
        return {"apart": apart(made.scale(maps), written_out(made, maps, paper))}


@measured(gate=("gc(ratio=4)", "gcg(ratio=4)"))
def context(gate: str) -> dict[str, float]:
    """A context under attention: the sum of its weights less one, of equal cells its distance from any of them, and
    how much it changes where the cells of a map change places."""
    made, maps = stirred(seeded(gate)(12)), drawn(2, 12, 5, 7)
    pool = made.context if gate.startswith("gcg") else made.pools[0]
    cell, mixed = (
        drawn(2, 12, 1, 1),
        maps.flatten(2)[:, :, torch.randperm(35, generator=torch.Generator().manual_seed(0))],
    )
    with torch.no_grad():
        return {
            "sum": apart(pool.attention(maps).sum(1), torch.ones(2).double()),
            "equal": apart(pool(cell.expand(2, 12, 5, 7))[:, 0], cell.flatten(1)),
            "moved": apart(pool(maps), pool(mixed.view_as(maps))),
        }


def contexts(gate: str) -> Cell:
    """The context of this gate."""
    return context.cell(gate=gate)


def is_one_mean(found: Figures) -> Finding:
    """All three to 1e-9."""
    worst = max(value for name in ("sum", "equal", "moved") for value in found(name))
    return Finding.of(f"to {worst:.0e}: weights sum to one, equal cells, cells in another order", worst < 1e-9)


@measured(gate=("pat_channel", "se(ratio=1)"))
def spread(gate: str) -> dict[str, float]:
    """How much factors change where a map's deviations are doubled and its means kept, and where the map is mirrored
    at its means, which keeps both."""
    made, maps = stirred(seeded(gate)(7)), drawn(2, 7, 5, 3)
    means = maps.mean((2, 3), keepdim=True)
    with torch.no_grad():
        wide, mirrored = (apart(made.scale(maps), made.scale(means + by * (maps - means))) for by in (2, -1))
        return {"changed": wide, "mirrored": mirrored}


def tells_deviations(found: Figures) -> Finding:
    """They change with deviations, those of a gate of the means alone do not, and with nothing but both."""
    own, means = found.one("changed", gate="pat_channel"), found.one("changed", gate="se(ratio=1)")
    same = found.one("mirrored", gate="pat_channel")
    figure = f"factors change by {own:.2g}, those of SE by {means:.0e}; of a map mirrored at its means by {same:.0e}"
    return Finding.of(figure, own > 1e-3, means < 1e-9, same < 1e-9)


@measured(channels=(3, 64, 512))
def triplet(channels: int) -> dict[str, float | int]:
    """Its weights and parameters, and its distance from a map that is turned for each of three branches."""
    made = seeded("triplet")(channels)
    found = {"weights": weights(made), "parameters": count(made)}
    made, maps = stirred(made), drawn(2, channels, 5, 3)
    out = torch.zeros_like(maps)
    with torch.no_grad():
        for order, branch in (((0, 2, 1, 3), 0), ((0, 3, 1, 2), 1), ((0, 1, 2, 3), 2)):
            turned = maps.permute(order)
            pooled = torch.cat((turned.amax(1, keepdim=True), turned.mean(1, keepdim=True)), 1)
            factor = torch.sigmoid(made.mix.norms[branch](made.mix.convolutions[branch](pooled)))
            out += (turned * factor).permute([order.index(axis) for axis in range(4)])
        return found | {"apart": apart(made(maps), out / 3)}


def is_three_turned_maps(found: Figures) -> Finding:
    """To 1e-9, with 3 · 2 · 49 weights and six numbers of norms whatever the channels."""
    worst, sizes = max(found("apart")), {*zip(found("weights"), found("parameters"), strict=True)}
    return Finding.of(
        f"equal to {worst:.0e}; {' and '.join(f'{w} weights of {p} parameters' for w, p in sizes)}",
        worst < 1e-9,
        sizes == {(294, 300)},
    )


@measured(size=("T", "B", "S", "L"), channels=(64, 512))
def strips(size: str, channels: int) -> dict[str, float | int]:
    """ELA's convolution weights and kernel, and how a map's output changes with what else is in the batch."""
    made = seeded(f"ela(size={size})")(channels)
    mix: Any = made.mix
    found = {"weights": weights(made), "kernel": mix.convolution.kernel_size[0]}
    made, maps = stirred(made).train(), drawn(2, channels, 9, 5)
    with torch.no_grad():
        return found | {"apart": apart(made(maps)[:1], made(maps[:1]))}


def is_light_and_alone(found: Figures) -> Finding:
    """c k weights in T and B, 8 c k in S and L; in training too a map's output is the same alone, to 1e-9."""
    times = {size: {row["weights"] / row["channels"] / row["kernel"] for row in rows} for size, rows in by_size(found)}
    worst = max(found("apart"))
    figure = f"weights over c k: {', '.join(f'{k} {listed(v)}' for k, v in times.items())}; alone to {worst:.0e}"
    return Finding.of(figure, times == {"T": {1}, "B": {1}, "S": {8}, "L": {8}}, worst < 1e-9)


def by_size(found: Figures) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of each size."""
    sizes = dict.fromkeys(found("size"))
    return [(size, [row for row in found.rows if row["size"] == size]) for size in sizes]


@measured(size=(7, 14))
def lowest_frequency(size: int) -> dict[str, float]:
    """FcaNet with the frequency (0, 0) alone against SE of S times the mean of the map pooled to S × S."""
    made = stirred(seeded(f"fcanet(frequencies=1, size={size}, ratio=2)")(6))
    se: Any = seeded("se(ratio=2, bias=False)")(6).double()
    se.load_state_dict(made.state_dict())
    maps = drawn(2, 6, 11, 5)
    mean = F.adaptive_avg_pool2d(maps, size).mean((2, 3))[:, None]
    with torch.no_grad():
        return {"apart": apart(made.factors(maps)["c"].flatten(), torch.sigmoid(se.mix([size * mean])[0]).flatten())}


@measured(channels=(64, 256, 512, 2048))
def frequencies_cost(channels: int) -> dict[str, int]:
    """Parameters of FcaNet beyond SE's."""
    return {"more": count(seeded("fcanet")(channels)) - count(seeded("se(bias=False)")(channels))}


@measured()
def subspaces() -> dict[str, float | int]:
    """ULSAM at 64 channels in 4 subspaces: weights, parameters, sums of its attention less one, channels that share."""
    made = seeded("ulsam")(64)
    found = {"weights": weights(made), "parameters": count(made)}
    with torch.no_grad():
        attention = stirred(made).factors(drawn(2, 64, 11, 7))["cyx"]
    shared = all(torch.equal(attention[:, 16 * g], attention[:, 16 * g + c]) for g in range(4) for c in range(16))
    return found | {"sum": apart(attention.sum((2, 3)), torch.ones(2, 64).double()), "shared": shared}


def is_two_a_channel(found: Figures) -> Finding:
    """128 weights at 64 channels; one map of attention a subspace, which sums to one."""
    weight, total, off, shared = (found.one(name) for name in ("weights", "parameters", "sum", "shared"))
    figure = f"{weight} convolution weights, {total} parameters; sums to one to {off:.0e}"
    return Finding.of(figure, weight == 128, off < 1e-9, shared)


@measured()
def previous_knowledge() -> dict[str, float | int]:
    """PKCAM's weights in all nine blocks of ResNet-20, and the smallest gradient that reaches an earlier stage."""
    total = 0
    for stage, channels in enumerate((16, 32, 64)):
        earlier = tuple(16 * 2 ** max(s - 1, 0) for s in range(stage + 1))  # the stem's, then one a stage
        total += count(seeded("pkcam")(channels)) + 2 * count(seeded("pkcam")(channels, earlier=earlier))
    made, past = stirred(seeded("pkcam")(8, earlier=(2, 4))), [drawn(3, 2), drawn(3, 4)]
    leaves = [descriptor.requires_grad_() for descriptor in past]
    with torch.no_grad():
        made.stages.weight.abs_()
    gradients = torch.autograd.grad(made(drawn(3, 8, 5, 7), past).square().sum(), leaves)
    return {"weights": total, "gradient": min(each.abs().max().item() for each in gradients)}


def is_light_and_reaches_back(found: Figures) -> Finding:
    """Fewer than 300 weights, gradients that are not zero."""
    total, gradient = found.one("weights"), found.one("gradient")
    return Finding.of(
        f"{total} weights; the gradient of every earlier stage reaches {gradient:.2g}", total < 300, gradient > 0
    )


@measured(order=(1, 2, 4, 6))
def polynomials(order: int) -> dict[str, float | int]:
    """The parameters of a gate of this order at 512 channels, and how far its terms are from homogeneous."""
    mix, maps = stirred(seeded(f"high_order(order={order})")(16)).mix, drawn(2, 16, 3, 5)
    with torch.no_grad():
        pairs = zip(mix.products(maps), mix.products(1.7 * maps), strict=True)
        off = max(apart(more, 1.7**degree * one) for degree, (one, more) in enumerate(pairs, 1))
    return {"parameters": count(seeded(f"high_order(order={order})")(512)), "apart": off}


def is_of_its_order(found: Figures) -> Finding:
    """Degrees to 1e-9 and the counts of the authors' modules."""
    counts, worst = found("parameters"), max(found("apart"))
    figure = f"degrees to {worst:.0e}; {listed(counts, ',')} weights for R = {listed(found('order'), 'd')}"
    return Finding.of(figure, worst < 1e-9, counts == [131_072, 327_680, 917_504, 1_769_472])


@measured()
def task_masks() -> dict[str, float]:
    """How much training one task's mask and head over a shared map moves what another task reads, and its own loss."""
    torch.manual_seed(0)
    x, shared = torch.randn(8, 3, 12, 12), nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
    masks, heads = ([regard.gate("medusa")(8), regard.gate("medusa")(8)], [nn.Conv2d(8, 1, 1) for _ in range(2)])
    before, want = heads[0](masks[0](shared(x))).detach(), x.sum(1, keepdim=True).sign()
    learned = torch.optim.Adam([*masks[1].parameters(), *heads[1].parameters()], 1e-2)
    losses = []
    for _ in range(60):
        loss = (heads[1](masks[1](shared(x))) - want).square().mean()
        learned.zero_grad()
        loss.backward()
        learned.step()
        losses.append(loss.item())
    after = heads[0](masks[0](shared(x))).detach()
    return {"moved": (after - before).abs().max().item(), "first": losses[0], "last": losses[-1]}


def leaves_others_alone(found: Figures) -> Finding:
    """By exactly nothing, while its own loss falls."""
    moved, first, last = (found.one(name) for name in ("moved", "first", "last"))
    return Finding.of(f"the other moved by {moved:g}, its own loss {first:.2f} to {last:.2f}", moved == 0, last < first)
