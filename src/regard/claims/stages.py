"""Hierarchical networks: the sizes that papers print, and what their layers reach."""

from __future__ import annotations

import itertools
import math
from importlib import import_module
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval
from regard.claims.testbeds.digits import accuracy
from regard.claims.testbeds.maps import stirred
from regard.core.layout import Layout
from regard.experiments.cell import Cell
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import is_printed
from regard.networks.stages.sizes import sizes, total
from regard.networks.stages.steps.attention import Attend, Channels
from regard.networks.stages.steps.convolution import Focal
from regard.networks.stages.steps.varied import VariedWindows
from regard.networks.vision.botnet import BoTNet
from regard.networks.vision.build import vision
from regard.networks.vision.ninformer import GatedLayer, NiNformer


@measured(family=["davit"])
def of_family(family: str) -> dict[str, int | str]:
    """Parameters and multiply-adds of each preset of a family, beside those printed and those of public weights."""
    found: dict[str, int | str] = {}
    for name, preset in import_module(f"regard.networks.vision.{family}").PRESETS.items():
        with torch.device("meta"):
            count, work = total(sizes(Stages(preset.design), preset.side))
        found |= {f"{name} parameters": count, f"{name} multiply-adds": work}
        found |= {f"{name} printed": f"{preset.parameters} {preset.multiply_adds} {preset.exact}"}
    return found


def sizes_of(family: str) -> Cell:
    """The sizes of this family."""
    return of_family.cell(family=family)


def are_printed(found: Figures) -> Finding:
    """Each is what is printed, to less than one of its last digit, and exactly that of public weights."""
    (row,), told, holds = found.rows, [], []
    for name in [key.removesuffix(" printed") for key in row if key.endswith(" printed")]:
        count, work = row[f"{name} parameters"], row[f"{name} multiply-adds"]
        millions, giga, exact = row[f"{name} printed"].split()
        holds.append(exact in ("None", str(count)) and (millions == "None" or is_printed(count, millions, 1e6)))
        holds.append(giga == "None" or is_printed(work, giga, 1e9))
        shown = f"{count:,} parameters" if exact != "None" else f"{count / 1e6:.2f} M"
        printed = f" ({millions.replace('None', '–')} M, {giga.replace('None', '–')} G printed)"
        told.append(f"{name} {shown}, {work / 1e9:.3f} G{printed if {millions, giga} != {'None'} else ''}")
    return Finding.of("; ".join(told), *holds)


@measured()
def windows() -> dict[str, float]:
    """How far attention in windows is from its definition, at sides they divide or not, spread or not, with a bias."""
    torch.manual_seed(0)
    worst = 0.0
    for spread, bias in ((False, False), (True, False), (False, True), (True, True)):
        mechanism: Any = stirred(regard.build("windows", side=3, spread=spread, bias=bias, heads=2))
        for grid in ((6, 9), (7, 11), (2, 1), (1, 1)):
            q, k, v = (torch.randn(2, 2, grid[0] * grid[1], 5, dtype=torch.float64) for _ in range(3))
            layout = Layout(grid=grid)
            apart = mechanism(q, k, v, layout) - mechanism.weights(q, k, layout) @ v
            worst = max(worst, apart.abs().max().item())
    return {"apart": worst}


@measured()
def channel_layer() -> dict[str, float]:
    """The share of cells that a cell depends on through channel attention, and its work for twice the cells."""
    step = stirred(Channels(8, 2))
    x = torch.randn(1, 8, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(step(x)[0, :, 2, 3].sum(), x)
    net = vision("stages(widths=(96,), layers='channels', heads=(3,), stem='patch(side=1)')")
    once, twice = (sizes(net, side)[1].multiply_adds for side in ((28, 28), (28, 56)))
    return {"reached": (gradient.abs().sum((0, 1)) > 0).double().mean().item(), "growth": twice / once}


def is_dense_and_linear(found: Figures) -> Finding:
    """All cells; 2.1 times at most."""
    reached, growth = found.one("reached"), found.one("growth")
    return Finding.of(
        f"{reached:.0%} of the cells, {growth:.2f} times the work for twice the cells", reached == 1, growth <= 2.1
    )


@measured(levels=(2, 3))
def focal_reach(levels: int) -> dict[str, int]:
    """The side of the square of cells that a cell depends on, its global context held fixed."""
    step = stirred(Focal(4, levels))
    x = torch.randn(1, 4, 23, 23, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    _, context, _ = step.first(x.movedim(1, -1)).split(step.split, -1)
    context = context.movedim(-1, 1)
    for convolution in step.convolutions:
        context = F.gelu(convolution(context))
    (gradient,) = torch.autograd.grad(context[0, :, 11, 11].sum(), x)
    seen = gradient.abs().sum((0, 1)) > 0
    return {"rows": int(seen.any(1).sum()), "columns": int(seen.any(0).sum())}


def reaches_as_said(found: Figures) -> Finding:
    """7 × 7 with two levels, 13 × 13 with three."""
    two, three = ([found("rows", levels=n)[0], found("columns", levels=n)[0]] for n in (2, 3))
    return Finding.of(
        f"{two[0]} × {two[1]} cells with two levels, {three[0]} × {three[1]} with three",
        two == [7, 7],
        three == [13, 13],
    )


@measured()
def folded() -> dict[str, float]:
    """How far SHViT with batch norms folded into its convolutions is from SHViT, in float32."""
    net = stirred(vision("shvit_s1", classes=10)).float().eval()
    x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out, short = net(x), net.folded()(x)
    return {"apart": ((out - short).abs().max() / out.abs().max()).item()}


@measured()
def regions() -> dict[str, float]:
    """How far gathered regions are from masked ones, and all regions from full attention, at several sides."""
    torch.manual_seed(0)
    worst = 0.0
    for topk, grid in itertools.product((2, 9), ((6, 9), (7, 11), (2, 1), (13, 3))):
        mechanism: Any = regard.build("routed_regions", topk=topk, regions=3)
        q, k, v = (torch.randn(2, 2, grid[0] * grid[1], 5, dtype=torch.float64) for _ in range(3))
        layout = Layout(grid=grid)
        out = mechanism(q, k, v, layout)
        want = [mechanism.weights(q, k, layout) @ v]
        if topk == 9:
            want.append(F.scaled_dot_product_attention(q, k, v, scale=10**-0.5))
        worst = max(worst, *((out - each).abs().max().item() for each in want))
    return {"apart": worst}


@measured()
def regions_growth() -> dict[str, float]:
    """The exponent of the FLOPs in the cells, with the number of regions that costs least for each size."""
    sides = (64, 256)
    least = []
    for side in sides:
        costs = []
        for count in range(2, side // 2):
            shape = regard.Shape(side * side, head_dim=32, heads=2)
            costs.append(regard.build("routed_regions", topk=4, regions=count).cost(shape, Layout(grid=(side, side))))
        least.append(min(cost.flops for cost in costs))
    return {"exponent": math.log(least[1] / least[0]) / math.log(sides[1] ** 2 / sides[0] ** 2)}


def is_four_thirds(found: Figures) -> Finding:
    """4/3, to 0.05."""
    exponent = found.one("exponent")
    return Finding.of(f"exponent {exponent:.3f}", abs(exponent - 4 / 3) < 0.05)


@measured()
def relative() -> dict[str, float]:
    """How far BoTNet's attention is from one whose scores of offsets are gathered cell by cell, on 4 × 7 cells."""
    torch.manual_seed(0)
    mechanism: Any = regard.build("relative_2d", head_dim=5, side=7).double()
    q, k, v = (torch.randn(2, 3, 28, 5, dtype=torch.float64) for _ in range(3))
    rows = mechanism.fitted(mechanism.rows_table, 4)
    scores = q @ k.mT
    for i, j in itertools.product(range(28), repeat=2):
        offset = rows[j // 7 - i // 7 + 3] + mechanism.columns_table[j % 7 - i % 7 + 6]
        scores[:, :, i, j] += q[:, :, i] @ offset
    want = torch.softmax(scores * 5**-0.5, -1) @ v
    return {"apart": (mechanism(q, k, v, Layout(grid=(4, 7))) - want).abs().max().item()}


@measured()
def botnet() -> dict[str, int]:
    """Parameters of BoTNet-50 and of ResNet-50 of the same parts."""
    with torch.device("meta"):
        own, plain = (BoTNet(attends=word).parameter_count for word in (True, False))
    return {"botnet": own, "resnet": plain}


def is_botnet(found: Figures) -> Finding:
    """20.8 million to less than one of its last digit, ResNet-50's 25,557,032."""
    own, plain = found.one("botnet"), found.one("resnet")
    figure = f"{own:,} parameters, ResNet-50 {plain:,}"
    return Finding.of(figure, is_printed(own, "20.8", 1e6), plain == 25_557_032)


@measured()
def ninformer_layer() -> dict[str, int]:
    """Parameters of one layer of 64 tokens of width 256 and inner width 512."""
    layer = GatedLayer(64, 256, 512)
    return {"parameters": sum(p.numel() for p in layer.parameters())}


def is_ninformer(found: Figures) -> Finding:
    """659,264."""
    total = found.one("parameters")
    return Finding.of(f"{total:,} parameters, the authors' code 659,264", total == 659_264)


@measured(tokens=(64, 196, 784))
def ninformer_work(tokens: int) -> dict[str, int]:
    """Multiply-adds of a layer of width 256 and inner width 512, and of ViT's: of inner width 1,024 at width 256."""
    layer, x = GatedLayer(tokens, 256, 512).to("meta"), torch.empty(1, tokens, 256, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    transformer = tokens * (4 * 256**2 + 2 * 256 * 1024) + 2 * tokens**2 * 256
    return {"own": counter.get_total_flops() // 2, "transformer": transformer}


def is_cheaper(found: Figures) -> Finding:
    """Fewer at 196 and 784."""
    pairs = {n: (found("own", tokens=n)[0], found("transformer", tokens=n)[0]) for n in (64, 196, 784)}
    figure = "; ".join(f"{n} tokens {own / other:.2f} of ViT's" for n, (own, other) in pairs.items())
    return Finding.of(figure, *(pairs[n][0] < pairs[n][1] for n in (196, 784)))


@measured(gated=(True, False), seed=range(3), steps=[300])
def ninformer_digits(gated: bool, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on held-out digits of two layers, or of four of the perceptron mixer, which have as many parameters."""
    net = NiNformer(10, (8, 8), 2, 32, 2 if gated else 4, 64, 1, gated, seed)
    return {"right": accuracy(net, seed, steps), "parameters": net.parameter_count}


def is_no_worse(found: Figures) -> Finding:
    """At most a point below on average."""
    own, mixer = (found("right", gated=word) for word in (True, False))
    figure = f"digits: {interval(own, '.1%')}, the mixer {interval(mixer, '.1%')}"
    return Finding.of(figure, mean(own) >= mean(mixer) - 0.01)


@measured()
def columns() -> dict[str, float]:
    """How far the columns of reversed attention are from what their tokens send, with padding and without."""
    torch.manual_seed(0)
    mechanism: Any = regard.build("reversed")
    q, k = torch.randn(2, 2, 3, 11, 5, dtype=torch.float64).unbind()
    send, worst = torch.rand(2, 3, 11, dtype=torch.float64), 0.0
    for keys in (None, torch.arange(11) < torch.tensor([[11], [6]])):
        sums = mechanism.weights(q, k, Layout(key_mask=keys), send=send).sum(2)
        want = send if keys is None else send * keys[:, None]
        worst = max(worst, (sums - want).abs().max().item())
    return {"apart": worst}


@measured()
def varied() -> dict[str, float]:
    """How far varied windows are from windows at first, and moved from their A over all cells times v."""
    torch.manual_seed(0)
    step, plain = (stirred(made) for made in (VariedWindows(8, 2, side=3), Attend(8, 2, "windows(side=3, bias=True)")))
    x, worst = torch.randn(2, 8, 9, 6, dtype=torch.float64), 0.0
    with torch.no_grad():
        plain.attention.projection.load_state_dict(step.projection.state_dict())
        plain.attention.mechanism.table.copy_(step.table)
        kept = {name: [p.clone() for p in getattr(step, name).parameters()] for name in ("scales", "offsets")}
        for name in kept:
            for parameter in getattr(step, name).parameters():
                parameter.zero_()
        worst = (step(x) - plain(x)).abs().max().item()
        for name, values in kept.items():
            for parameter, value in zip(getattr(step, name).parameters(), values, strict=True):
                parameter.copy_(value)
        v = step.heads(x)[2].flatten(3).mT.repeat_interleave(6, 0)
        own, every = step.windows(step.heads(x)[2]), step.attention(x) @ v
        out = torch.zeros_like(x)
        for place in range(6):  # the windows of 3 × 3 cells, row by row
            y, across = 3 * (place // 2), 3 * (place % 2)
            part = every.unflatten(0, (2, 6))[:, place].transpose(1, 2).flatten(2)
            out[:, :, y : y + 3, across : across + 3] = step.projection.out(part).mT.unflatten(2, (3, 3))
        assert every.shape == own.shape
        return {"apart": max(worst, (step(x) - out).abs().max().item())}


@measured()
def varied_gradients() -> dict[str, float]:
    """The least gradient of any number that moves the windows, over the largest, in a step as it begins."""
    torch.manual_seed(0)
    step = VariedWindows(8, 2, side=3).double()
    step(torch.randn(2, 8, 9, 6, dtype=torch.float64)).square().sum().backward()
    grads = [p.grad.abs() for made in (step.scales, step.offsets) for p in made.parameters() if p.grad is not None]
    return {
        "tensors": len(grads),
        "least": min(g.amin().item() for g in grads),
        "most": max(g.amax().item() for g in grads),
    }


def are_reached(found: Figures) -> Finding:
    """All four tensors, every number of them."""
    least, most = found.one("least"), found.one("most")
    return Finding.of(f"gradients {least:.1e} to {most:.1e}", found.one("tensors") == 4, least > 0)
