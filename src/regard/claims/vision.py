"""Networks of images: L²ViT, Twins, context broadcasting, layers as integration over depth, and segmentation."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import log2
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.blocks.attention import Attention
from regard.blocks.spatial import NonLocal
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.testbeds.digits import accuracy, digits, load
from regard.claims.testbeds.scenes import CLASSES, overlap, scenes
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks import Config
from regard.networks.neural_ode.solver import Solver
from regard.networks.neural_ode.vit import ODEViT, change
from regard.networks.stages.network import Stages
from regard.networks.stages.steps.attention import Attend, Summary
from regard.networks.vision.broadcast import BroadcastViT, attention_entropy
from regard.networks.vision.l2vit import L2ViT
from regard.networks.vision.twins import design as twins_design
from regard.networks.vision.vit import ViT
from regard.projections.base import Grouped
from regard.train.fit import Recipe, fit


@measured(scale=(0.3, 3.0), causal=(False, True))
def clamped(scale: float, causal: bool) -> dict[str, float]:
    """How far φ(q)(φ(k)ᵀ v) is from (φ(q) φ(k)ᵀ) v under the clamp, with gradients."""
    torch.manual_seed(0)
    q, k, v = (scale * torch.randn(2, 3, 101, 7, dtype=torch.float64) for _ in range(3))
    mechanism: Any = regard.build("l2vit", heads=3, head_dim=7).double()
    with torch.no_grad():
        mechanism.temperature.copy_(torch.tensor([0.5, 1.0, 2.0]))
    leaves = [x.requires_grad_() for x in (q, k, v)] + [mechanism.temperature]
    products = q.relu() @ k.relu().mT
    products = products.tril() if causal else products
    want = mechanism.temperature[:, None, None] * (products @ v) / products.sum(-1, keepdim=True).clamp(min=100)
    outs = (mechanism(q, k, v, Layout(causal=causal)), want)
    found = [[out, *torch.autograd.grad(out.square().sum(), leaves)] for out in outs]
    return {"apart": max(((a - b).abs() / (1 + b.abs())).max().item() for a, b in zip(*found, strict=True))}


@measured()
def four_times() -> dict[str, float]:
    """FLOPs of the attention, and of a network with windows, for four times the pixels."""
    shapes = [regard.Shape(n, head_dim=16, heads=4) for n in (196, 784)]
    small, large = (regard.build("l2vit").cost(shape, Layout()).flops for shape in shapes)
    counts = []
    for side in (64, 128):
        network = L2ViT(Config(10, width=32, layers="neighborhood(window=3), l2vit", heads=2), (side, side), 2)
        with FlopCounterMode(display=False) as counter, torch.no_grad():  # which knows the kernels imported by then
            network(torch.zeros(1, 1, side, side))
        counts.append(counter.get_total_flops())
    return {"attention": large / small, "network": counts[1] / counts[0]}


def cost_four_times(found: Figures) -> Finding:
    """Exactly four, of the network 4.0 ± 0.2."""
    attention, network = found.one("attention"), found.one("network")
    figure = f"FLOPs {attention:.2f} times, of a network with windows {network:.2f}"
    return Finding.of(figure, attention == 4, abs(network - 4) < 0.2)


def concentration(model: Any, images: Tensor) -> float:
    """Mean share of each row of the last layer's attention that its ten largest weights hold."""
    x = model.embed(images)
    for layer in model.layers[:-1]:
        x = layer(x, Layout(), None)
    layer = model.layers[-1]
    x = x + layer.positions(x, layer.grid)
    attention = layer.layer.attention
    q, k, _, _ = attention.inputs(layer.layer.norms[0](x))
    weights = attention.mechanism.weights(q, k, Layout())
    return (weights.topk(10, dim=-1).values.sum(-1) / weights.sum(-1).clamp(min=1e-9)).mean().item()


L2VIT = {"with": ("l2vit", True), "without": ("l2vit", False), "softmax": ("softmax", False)}


@measured(arm=tuple(L2VIT), seed=range(2), steps=[300])
def concentrated(arm: str, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on held-out digits with the local concentration module, without it, and with softmax; top-10 mass."""
    last, module = L2VIT[arm]
    images, labels = load()
    images = 2 * images - 1

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        rows = torch.randint(1400, (32,), generator=generator)
        return F.cross_entropy(ready(images[rows]), labels[rows])

    config = Config(10, width=32, layers=f"neighborhood(window=3), {last}", heads=2)
    model = fit(L2ViT(config, (8, 8), 1, seed=seed, concentrated=module), loss, Recipe(steps, seed=seed))
    with torch.no_grad():
        right = (model(images[1400:]).argmax(-1) == labels[1400:]).double().mean().item()
        return {"right": right, "mass": concentration(model, images[1400:1500])}


def module_does_not_harm(found: Figures) -> Finding:
    """On average no worse than without."""
    own, without = (found("right", arm=arm) for arm in ("with", "without"))
    return Finding.of(
        f"digits, two seeds: {mean(own):.1%} with the module, {mean(without):.1%} without", mean(own) >= mean(without)
    )


def holds_less(found: Figures) -> Finding:
    """The ten largest weights hold less than softmax's, in every seed."""
    own, softmax = (found("mass", arm=arm) for arm in ("with", "softmax"))
    figure = f"top-10 mass {mean(own):.0%} against softmax's {mean(softmax):.0%}"
    return Finding.of(figure, all(a < b for a, b in zip(own, softmax, strict=True)))


@measured()
def windows() -> dict[str, float]:
    """How far local attention over 12 × 8 cells is from fused attention in each 4 × 4 window."""
    torch.manual_seed(0)
    step: Any = Attend(16, 2, "windows(side=4)").double()
    x = torch.randn(2, 16, 12, 8, dtype=torch.float64)
    parts = x.view(2, 16, 3, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(12, 16, 16)
    p = step.attention.projection
    q, k, v = (matrix(parts).unflatten(2, (2, -1)).transpose(1, 2) for matrix in (p.q, p.k, p.v))
    want = p.merge(F.scaled_dot_product_attention(q, k, v))
    want = want.view(2, 3, 2, 4, 4, 16).permute(0, 5, 1, 3, 2, 4).reshape(2, 16, 12, 8)
    return {"apart": (step(x) - want).abs().max().item()}


@measured()
def pair_of_layers() -> dict[str, float]:
    """The share of pairs of cells that a window layer reaches, and a window and a summary layer."""
    torch.manual_seed(0)
    first, second = Attend(8, 2, "windows(side=4)"), Summary(8, 2, ratio=4)
    x, found = torch.randn(1, 8, 8, 8), {}
    for name, steps in (("one", (first,)), ("both", (first, second))):
        run = nn.Sequential(*steps)
        jacobian: Any = torch.autograd.functional.jacobian(lambda cells, run=run: run(cells)[0].sum(0).flatten(), x)
        found[name] = (jacobian[:, 0].abs().sum(1) > 0).double().mean().item()
    return found


def reaches_every_token(found: Figures) -> Finding:
    """All pairs after both, not after one."""
    one, both = found.one("one"), found.one("both")
    return Finding.of(f"{both:.0%} of the pairs reached, by the window layer alone {one:.0%}", both == 1, one < 1)


@measured(kind=("SVT", "PCPVT"), steps=[1500])
def twins_on_digits(kind: str, steps: int) -> dict[str, float]:
    """Accuracy of a two-stage network on held-out digits."""
    images, labels = load()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    sizes: dict[str, Any] = {"widths": (32, 64), "heads": (2, 4), "depths": (2, 2), "ratios": (2, 1), "patch": 1}

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        rows = train[torch.randint(len(train), (64,), generator=generator)]
        return F.cross_entropy(ready(images[rows]), labels[rows])

    model = Stages(twins_design(window=2 if kind == "SVT" else None, **sizes), 10, 1)
    fit(model, loss, Recipe(steps, 2e-3))
    with torch.no_grad():
        return {"right": (model(images[test]).argmax(1) == labels[test]).float().mean().item()}


BROADCAST = Config(10, 32, "softmax*3", heads=2, rotary_base=None)


def broadcast_network(kind: str, seed: int) -> ViT:
    if kind == "plain":
        return ViT(BROADCAST, (8, 8), 2, seed=seed)
    return BroadcastViT(BROADCAST, (8, 8), 2, scaled=kind == "CB_S", seed=seed)


@measured(kind=("plain", "CB", "CB_S"), seed=range(10), steps=[2000])
def broadcast(kind: str, seed: int, steps: int) -> dict[str, float | int]:
    """Parameters, accuracy on held-out digits and mean entropy of attention in nats."""
    model = broadcast_network(kind, seed)
    right = accuracy(model, seed, steps)
    with torch.no_grad():
        entropy = attention_entropy(model, digits(seed)[2]).mean().item()
    return {"parameters": sum(p.numel() for p in model.parameters()), "right": right, "entropy": entropy}


def lowers_entropy(found: Figures) -> Finding:
    """With CB the mean entropy is below the transformer's and the accuracy at most 0.3 points below; no parameters."""
    plain, own = (
        {name: found.mean(name, kind=kind) for name in ("parameters", "right", "entropy")} for kind in ("plain", "CB")
    )
    seeds = len(found("right", kind="CB"))
    figure = (
        f"digits, {seeds} seeds: entropy {own['entropy']:.2f} nats with CB, {plain['entropy']:.2f} without, "
        f"accuracy {own['right']:.1%} against {plain['right']:.1%}"
    )
    lower, close = own["entropy"] < plain["entropy"], own["right"] >= plain["right"] - 0.003
    return Finding.of(figure, lower, close, own["parameters"] == plain["parameters"])


def has_no_parameter_more(found: Figures) -> Finding:
    """CB has the transformer's parameters, CB_S one for each channel of a layer more."""
    plain, own, scaled = (found("parameters", kind=kind)[0] for kind in ("plain", "CB", "CB_S"))
    return Finding.of(f"{own - plain} parameters more, CB_S {scaled - plain}", own == plain, scaled == plain + 3 * 32)


def ode(method: str = "euler", steps: int = 1, time: float = 1.0, layers: str = "softmax", seed: int = 0) -> ODEViT:
    solver = Solver(method, steps)  # pyright: ignore
    return ODEViT(Config(10, width=32, heads=2, layers=layers), (8, 8), 2, solver, time, seed=seed)


def field() -> tuple[Any, Tensor]:
    """F of one layer in float64, and a start."""
    torch.manual_seed(0)
    layer: Any = ode().double().layers[0]
    return partial(change, layer), torch.randn(3, 16, 32, dtype=torch.float64)


@measured()
def euler_step() -> dict[str, float]:
    """How far unit Euler steps are from parallel layers, each with its weights or all with the same."""
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    plain: Any = ViT(Config(10, width=32, heads=2, layers="softmax*3"), (8, 8), 2, backbone="parallel").double()
    found, shared = ode(layers="softmax*3").double(), ode("euler", 3, 3.0).double()
    found.load_state_dict(plain.state_dict())
    with torch.no_grad():
        first = (found(images) - plain(images)).abs().max().item()
        for layer in plain.layers[1:]:
            layer.load_state_dict(plain.layers[0].state_dict())
        known = shared.state_dict()
        shared.load_state_dict({name: weight for name, weight in plain.state_dict().items() if name in known})
        return {"apart": max(first, (shared(images) - plain(images)).abs().max().item())}


@measured(method=("euler", "rk4"))
def error_order(method: str) -> dict[str, float]:
    """The least and the largest exponent by which the error after a span of 4 falls with the step."""
    f, x = field()
    with torch.no_grad():
        want = Solver("dormand_prince", None, 1e-12)(f, x, 4.0)
        solvers = [Solver(method, steps) for steps in (8, 16, 32, 64)]  # pyright: ignore
        errors = [(solver(f, x, 4.0) - want).norm().item() for solver in solvers]
    slopes = [log2(a / b) for a, b in pairwise(errors)]
    return {"least": min(slopes), "most": max(slopes)}


def has_its_order(found: Figures) -> Finding:
    """1 for Euler and 4 for RK4, to 0.3."""
    rows = {row["method"]: (row["least"], row["most"]) for row in found.rows}
    shown = "; ".join(f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in rows.items())
    near = [abs(slope - order) < 0.3 for name, order in (("euler", 1), ("rk4", 4)) for slope in rows[name]]
    return Finding.of(f"exponents of the error: {shown}", all(near))


@measured(solver=("dormand_prince", "rk4"))
def adjoint(solver: str) -> dict[str, float]:
    """How far the adjoint's gradients are from direct ones."""
    f, x = field()
    parameters, found = list(f.args[0].parameters()), []
    for way in (False, True):
        start = x.clone().requires_grad_()
        steps, tolerance = (32, 1e-6) if solver == "rk4" else (None, 1e-9)
        out = Solver(solver, steps, tolerance, way)(f, start, 1.0, parameters)  # pyright: ignore
        found.append(torch.autograd.grad(out.sin().sum(), (start, *parameters)))
    return {"apart": max((a - b).abs().max().item() for a, b in zip(*found, strict=True))}


@measured(backbone=("sequential", "parallel"), seed=range(10), steps=[1000])
def blocks(backbone: str, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on held-out digits of three layers one after another, or each beside its network."""
    config = Config(10, width=32, heads=2, layers="softmax*3")
    return {"right": accuracy(ViT(config, (8, 8), 2, backbone=backbone, seed=seed), seed, steps)}  # pyright: ignore


@measured(method=("euler", "rk4"), seed=range(10), steps=[1000])
def solvers(method: str, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on held-out digits of one layer integrated over a time of 3 in 3 steps."""
    return {"right": accuracy(ode(method, 3, 3.0, seed=seed), seed, steps)}


def parallel_is_no_worse(found: Figures) -> Finding:
    """At most half a point below the sequential ones on average."""
    parallel, sequential = (found("right", backbone=name) for name in ("parallel", "sequential"))
    figure = f"digits: parallel {interval(parallel, '.1%')}, sequential {interval(sequential, '.1%')}"
    return Finding.of(figure, mean(parallel) >= mean(sequential) - 0.005)


def rk4_is_no_worse(found: Figures) -> Finding:
    """No worse than Euler on average."""
    rk4, euler = (found("right", method=name) for name in ("rk4", "euler"))
    return Finding.of(f"digits: RK4 {interval(rk4, '.1%')}, Euler {interval(euler, '.1%')}", mean(rk4) >= mean(euler))


def convolved(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def segmenter(width: int, seed: int, attends: bool) -> nn.Sequential:
    """Five convolutions that see 17 × 17 pixels, efficient attention before the last of them, or none."""
    torch.manual_seed(seed)
    d = width // 2
    module = (
        NonLocal(Attention(regard.build("efficient"), Grouped(Sizes(width, 2, 2, d, d)))) if attends else nn.Identity()
    )
    return nn.Sequential(
        convolved(1, width),
        convolved(width, width, 2),
        convolved(width, width),
        convolved(width, width),
        module,
        convolved(width, width),
        nn.Conv2d(width, CLASSES, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )


@measured(attends=(True, False), seed=range(1, 4), steps=[1000])
def segmentation(attends: bool, seed: int, steps: int) -> dict[str, float | int]:
    """Mean IoU on drawn scenes that need distant context, and parameters, with efficient attention and without."""
    model = segmenter(16 if attends else 17, seed, attends)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        images, labels = scenes(16, generator)
        return F.cross_entropy(ready(images), labels)

    fit(model, loss, Recipe(steps, seed=seed))
    unseen = scenes(512, torch.Generator().manual_seed(0))
    return {"overlap": overlap(model, *unseen), "parameters": sum(p.numel() for p in model.parameters())}


def raises_the_overlap(found: Figures) -> Finding:
    """In every seed above every one without, at equal parameters within 5%."""
    own, without = (found("overlap", attends=attends) for attends in (True, False))
    counts = [found("parameters", attends=attends)[0] for attends in (True, False)]
    figure = f"mean IoU on drawn scenes {listed(own, '.2f')} with the module, {listed(without, '.2f')} without"
    return Finding.of(figure, abs(counts[1] / counts[0] - 1) < 0.05, min(own) > max(without))
