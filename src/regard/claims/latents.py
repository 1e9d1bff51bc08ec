"""Latents: what they learn of arrays of any kind, their rank and their cost, and what frozen features tell."""

from __future__ import annotations

from functools import cache
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.testbeds.digits import digits
from regard.claims.testbeds.source import NAMES
from regard.hosts import small
from regard.networks.latents.base import Latents, Reading, split_heads
from regard.networks.latents.ep import EfficientProbing
from regard.networks.latents.flare import Flare, FlareModel
from regard.networks.latents.perceiver import Layer, Perceiver, fourier, positions
from regard.networks.latents.slots import Slots
from regard.networks.latents.tempr import TemPr
from regard.networks.latents.tempr_video import TemPrVideo
from regard.train.fit import Recipe, fit
from regard.train.probe import probe
from regard.train.tiny.corpus import read_packages

MODALITIES = ("pictures", "points", "waves")


def points(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Sets of 48 points of the plane on a circle, a square, a triangle or a cross, turned and moved, in no order."""
    labels = torch.randint(4, (count,), generator=generator)
    t = torch.rand(count, 48, generator=generator)
    corners = torch.tensor([[1.0, 1.0], [-1, 1], [-1, -1], [1, -1]])
    third = torch.tensor([[0.0, 1.2], [-1.04, -0.6], [1.04, -0.6]])
    circle = torch.stack([(2 * pi * t).cos(), (2 * pi * t).sin()], -1)
    cross = torch.where(t[..., None] < 0.5, torch.stack([4 * t - 1, 0 * t], -1), torch.stack([0 * t, 4 * t - 3], -1))
    drawn = torch.stack([circle, along(corners, t), along(third, t), cross])[labels, torch.arange(count)]
    angle = 2 * pi * torch.rand(count, 1, generator=generator)
    x, y = drawn.unbind(-1)
    turned = torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], -1)
    moved = turned + 0.3 * torch.randn(count, 1, 2, generator=generator)
    return moved + 0.05 * torch.randn(moved.shape, generator=generator), labels


def along(corners: Tensor, t: Tensor) -> Tensor:
    """The points at shares ``t`` of the way around a polygon."""
    place = t * len(corners)
    corner = place.long().clamp(max=len(corners) - 1)
    share = (place - corner)[..., None]
    return corners[corner] * (1 - share) + corners[(corner + 1) % len(corners)] * share


def waves(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """96 samples of a sine, a square, a triangle or a saw, of any pitch and phase, with noise."""
    labels = torch.randint(4, (count,), generator=generator)
    pitch, phase = (torch.rand(count, 1, generator=generator) for _ in range(2))
    t = ((3 + 3 * pitch) * torch.linspace(0, 1, 96) + phase) % 1
    saw = 2 * t - 1
    kinds = torch.stack([(2 * pi * t).sin(), torch.sign(saw), 2 * saw.abs() - 1, saw])
    drawn = kinds[labels, torch.arange(count)]
    return (drawn + 0.1 * torch.randn(drawn.shape, generator=generator))[..., None], labels


def with_places(array: Tensor, places: Tensor) -> Tensor:
    """An array with positions beside its channels."""
    return torch.cat([array, places.expand(len(array), -1, -1)], -1)


class Classifier(nn.Module):
    """The mean of a Perceiver's latents, normed, then a linear map; one and the same for every modality."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.perceiver = Perceiver(channels, 8, 32, rounds=2, layers=1, reads=2, heads=4, widening=2)
        self.norm, self.classes = nn.LayerNorm(32), nn.Linear(32, classes)

    def forward(self, array: Tensor) -> Tensor:
        return self.classes(self.norm(self.perceiver(array).mean(1)))


@measured(modality=MODALITIES, seed=range(2), steps=[1500])
def modalities(modality: str, seed: int, steps: int) -> dict[str, float]:
    """Share of unseen examples that a small Perceiver tells apart."""
    noise = torch.Generator().manual_seed(10_000 + seed)
    if modality == "pictures":
        images, labels, unseen, answers = digits(seed)
        places = positions((8, 8), 4)
        images, unseen = (with_places(x.flatten(2).mT, places) for x in (images, unseen))
    else:
        draw, places = (points, None) if modality == "points" else (waves, positions((96,), 16))
        (images, labels), (unseen, answers) = draw(4000, noise), draw(600, noise)
        if places is None:
            images, unseen = (fourier(x / 2, 6, (8, 8)) for x in (images, unseen))
        else:
            images, unseen = with_places(images, places), with_places(unseen, places)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        rows = torch.randint(len(labels), (32,), generator=generator)
        return F.cross_entropy(ready(images[rows]), labels[rows])

    torch.manual_seed(seed)
    model = fit(Classifier(images.shape[2], int(labels.max()) + 1), loss, Recipe(steps, rate=3e-3, seed=seed))
    with torch.no_grad():
        return {"right": (model(unseen).argmax(1) == answers).float().mean().item()}


def learns_all(found: Figures) -> Finding:
    """At least 95% of digits, 90% of sets of points and of waves, with every seed."""
    right = {modality: found("right", modality=modality) for modality in MODALITIES}
    figure = "; ".join(f"{modality} {listed(shares, '.1%')}" for modality, shares in right.items())
    least = {"pictures": 0.95, "points": 0.9, "waves": 0.9}
    return Finding.of(figure, *(min(right[modality]) >= bar for modality, bar in least.items()))


@measured(n=[8192])
def doubled(n: int) -> dict[str, float]:
    """FLOPs of the published Perceiver on twice as many elements, by those on n."""
    with torch.device("meta"):
        model = Perceiver(261)
    return {"ratio": model.flops(2 * n) / model.flops(n)}


@measured(n=[8192])
def flare_doubled(n: int) -> dict[str, float]:
    """FLOPs of FLARE on twice as many elements, by those on n."""
    with torch.device("meta"):
        model = Flare(64)
    return {"ratio": model.flops(2 * n) / model.flops(n)}


@measured(latents=(4, 16), n=(128, 256))
def rank(latents: int, n: int) -> dict[str, int]:
    """The rank of the effective matrix of each of two heads, the larger one, in float64."""
    torch.manual_seed(0)
    mixer = Flare(16, latents, 2).double()
    with torch.no_grad():
        matrix = mixer.effective(torch.randn(1, n, 16, dtype=torch.float64))
    return {"rank": int(torch.linalg.matrix_rank(matrix, rtol=1e-10).max())}


def is_low(found: Figures) -> Finding:
    """M at most."""
    ranks, latents = found("rank"), found("latents")
    return Finding.of(
        f"rank {listed(ranks, 'g')} with {listed(latents, 'g')} latents on 128 and 256 points",
        *(r <= m for r, m in zip(ranks, latents, strict=True)),
    )


SIDE = 16


@cache
def poisson_problems(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``−Δu = f`` on a square grid of 16 × 16 inner points, u = 0 around it, by finite differences: f and u, scaled."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.arange(1, SIDE + 1) / (SIDE + 1)
    modes = torch.stack([(pi * (k + 1) * x).sin() for k in range(6)])
    weights = torch.randn(count, 6, 6, generator=noise) / (1 + torch.arange(6.0)[:, None] + torch.arange(6.0))
    f = torch.einsum("bij,iy,jx->byx", weights, modes, modes)
    line = (2 * torch.eye(SIDE) - torch.eye(SIDE).roll(1, 0).tril(-1) - torch.eye(SIDE).roll(-1, 0).triu(1)) * (
        SIDE + 1
    ) ** 2
    laplace = torch.kron(line, torch.eye(SIDE)) + torch.kron(torch.eye(SIDE), line)
    u = torch.linalg.solve(laplace.double(), f.flatten(1).double().mT).mT.float()
    return f.flatten(1)[..., None], u[..., None] / u.std()


class ReadAndAsked(nn.Module):
    """Latents that read the points once, mix, and are asked by every point: a Perceiver with an output of fields."""

    def __init__(self, channels: int, width: int, latents: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, width)
        self.perceiver = Perceiver(width, latents, width, rounds=1, layers=layers, heads=4, widening=2)
        self.ask = Layer(width, width, 4, width, 2)
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        asked = self.ask.asked(x, self.perceiver(x))
        found = F.scaled_dot_product_attention(asked.q, asked.k, asked.v, scale=asked.scale)
        return self.last(self.ask.finish(x, found))


@measured(model=("flare", "perceiver"), seed=range(2), steps=[500])
def poisson(model: str, seed: int, steps: int) -> dict[str, float]:
    """The relative error of u of unseen f in the mean square, and the parameters."""
    (f, u), (unseen, answers) = poisson_problems(600, 1), poisson_problems(100, 2)
    places = positions((SIDE, SIDE), 4)
    torch.manual_seed(seed)
    channels = 1 + places.shape[1]
    if model == "flare":
        net: nn.Module = FlareModel(channels, 1, 32, blocks=2, latents=16, heads=4, hidden=1)
    else:
        net = ReadAndAsked(channels, 32, 16, layers=2)

    def error(ready: nn.Module, rows: Tensor, source: Tensor, wanted: Tensor) -> Tensor:
        got = ready(with_places(source[rows], places))
        return ((got - wanted[rows]).square().sum((1, 2)) / wanted[rows].square().sum((1, 2))).sqrt().mean()

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        return error(ready, torch.randint(len(f), (16,), generator=generator), f, u)

    fit(net, loss, Recipe(steps, rate=3e-3, seed=seed))
    with torch.no_grad():
        found = error(net, torch.arange(len(unseen)), unseen, answers).item()
    return {"error": found, "parameters": sum(p.numel() for p in net.parameters())}


def solves_no_worse(found: Figures) -> Finding:
    """FLARE's error is no larger in the mean of the seeds, with at most a tenth more parameters."""
    own, other = found("error", model="flare"), found("error", model="perceiver")
    sizes = [found("parameters", model=model)[0] for model in ("flare", "perceiver")]
    errors = [interval(values, ".3f") for values in (own, other)]
    figure = f"relative error {errors[0]} with {sizes[0]:,} parameters, {errors[1]} with {sizes[1]:,}"
    return Finding.of(figure, sum(own) <= sum(other), sizes[0] <= 1.1 * sizes[1])


def clustered(count: int, clusters: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Sets of 8 points a cluster around centres in the square from −2 to 2 that lie apart, and whose each is."""
    sets, labels = [], torch.arange(clusters).repeat_interleave(8)
    while len(sets) < count:
        centres = 4 * torch.rand(clusters, 2, generator=generator) - 2
        apart = torch.cdist(centres, centres) + 10 * torch.eye(clusters)
        if apart.min() > 1:
            sets.append(centres[labels] + 0.12 * torch.randn(len(labels), 2, generator=generator))
    return torch.stack(sets), labels


def rand_index(found: Tensor, labels: Tensor) -> float:
    """The adjusted Rand index of two ways to divide the same elements: 1 where they are one, 0 by chance."""
    pairs = F.one_hot(found).float().mT @ F.one_hot(labels).float()

    def choose(x: Tensor) -> float:
        return (x * (x - 1) / 2).sum().item()

    both, first, second = choose(pairs), choose(pairs.sum(1)), choose(pairs.sum(0))
    chance = first * second / choose(torch.tensor([float(len(labels))]))
    most = (first + second) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


class Mixture(nn.Module):
    """A set as a mixture of normal distributions, one for each slot; its slots are trained by the set's likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32))
        self.slots = Slots(32, 4, 32, 3, 64)
        self.centre = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def logs(self, sets: Tensor, slots: int, generator: Generator) -> Tensor:
        """``(b, n, slots)``: log-likelihoods of each point of each slot's distribution, of deviation 0.3."""
        centres = self.centre(self.slots(self.embed(sets), start=self.slots.start(len(sets), generator, slots)))
        return -torch.cdist(sets, centres).square() / (2 * 0.3**2)


@measured(seed=range(3), steps=[1500])
def clusters(seed: int, steps: int) -> dict[str, float]:
    """The adjusted Rand index of slots and clusters, in sets of three clusters as in training and of five."""
    torch.manual_seed(seed)
    noise = torch.Generator().manual_seed(99)
    sets, _ = clustered(2000, 3, noise)
    model = Mixture()

    def loss(ready: Any, generator: Generator) -> Tensor:
        rows = torch.randint(len(sets), (32,), generator=generator)
        return -ready.logs(sets[rows], 4, generator).logsumexp(2).mean()

    fit(model, loss, Recipe(steps, rate=1e-3, seed=seed, decay=0.0))
    found = {}
    with torch.no_grad():
        for count in (3, 5):
            unseen, labels = clustered(100, count, torch.Generator().manual_seed(7))
            best = model.logs(unseen, count + 1, torch.Generator().manual_seed(8)).argmax(2)
            found[f"index_{count}"] = sum(rand_index(row, labels) for row in best) / len(best)
    return found


def are_told_apart(found: Figures) -> Finding:
    """0.8 at least with every seed, and with five clusters at most 0.1 less in the mean."""
    three, five = found("index_3"), found("index_5")
    figure = f"adjusted Rand index {listed(three, '.2f')} with three clusters, {listed(five, '.2f')} with five"
    return Finding.of(figure, min(three) >= 0.8, sum(five) >= sum(three) - 0.1 * len(three))


class HeadsPool(Latents):
    """The usual attention pool: one learned query, keys, values and output projected, many heads."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, 1, channels)
        self.heads = heads
        self.initial = nn.Parameter(0.02 * torch.randn(1, channels))
        self.key, self.value, self.query, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def start(self, batch: int, generator: Generator | None = None) -> Tensor:
        return self.initial.expand(batch, -1, -1)

    def reading(self, turn: int, latents: Tensor, array: Tensor) -> Any:
        q, k, v = (split_heads(x, self.heads) for x in (self.query(latents), self.key(array), self.value(array)))
        return Reading(q, k, v, q.shape[3] ** -0.5)

    def updated(self, turn: int, latents: Tensor, found: Tensor) -> Tensor:
        return self.out(found.transpose(1, 2).flatten(2))


TOKENS, CUT = 64, 240


@cache
def features(held_out: bool, each: int) -> tuple[Tensor, Tensor, Tensor]:
    """Last hidden states of MiniLM for pieces of five packages' source, which tokens are real, and whose they are."""
    model, tokenizer = small.load("minilm")
    noise, texts = torch.Generator().manual_seed(3 + held_out), []
    for name in NAMES:
        source = "\n".join(read_packages((name,), held_out))
        starts = torch.randint(len(source) - CUT, (each,), generator=noise).tolist()
        texts += [source[start : start + CUT] for start in starts]
    found, real = [], []
    with torch.no_grad():
        for first in range(0, len(texts), 50):
            part = texts[first : first + 50]
            batch = tokenizer(part, return_tensors="pt", truncation=True, max_length=TOKENS, padding="max_length")
            found.append(model(**batch).last_hidden_state)
            real.append(batch.attention_mask.bool())
    return torch.cat(found), torch.cat(real), torch.arange(len(NAMES)).repeat_interleave(each)


def pool_of(how: str) -> Latents | None:
    """What features are pooled by."""
    if how == "mean":
        return None
    return EfficientProbing(384, 32) if how == "ep" else HeadsPool(384, 12)


@measured(how=("mean", "heads", "ep"), seed=range(2), steps=[120])
def probes(how: str, seed: int, steps: int) -> dict[str, float]:
    """Share of unseen pieces whose package a probe tells, at the rate of two that suits a fifth of the pieces."""
    x, real, labels = features(False, 120)
    unseen, there, answers = features(True, 80)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    kept, left = order[len(order) // 5 :], order[: len(order) // 5]

    def right(made: Any, x: Tensor, real: Tensor, labels: Tensor) -> float:
        with torch.no_grad():
            return (made(x, real).argmax(1) == labels).float().mean().item()

    best, found = -1.0, {}
    for rate in (1e-3, 1e-2):
        torch.manual_seed(seed)
        pool = pool_of(how)
        made = probe(pool, x[kept], labels[kept], Recipe(steps, rate=rate, seed=seed), real[kept], size=32)
        score = right(made, x[left], real[left], labels[left])
        if score > best:
            best, found = score, {"right": right(made, unseen, there, answers), "rate": rate}
        found["parameters"] = 0 if pool is None else pool.parameter_count
    return found


def tells_more(found: Figures) -> Finding:
    """More than the mean, at most half a point less than many heads, with at most a third of their parameters."""
    mean, heads, own = (found("right", how=how) for how in ("mean", "heads", "ep"))
    sizes = [found("parameters", how=how)[0] for how in ("heads", "ep")]
    figure = (
        f"mean of features {listed(mean, '.1%')}, {sizes[0]:,} parameters of many heads {listed(heads, '.1%')}, "
        f"{sizes[1]:,} of efficient probing {listed(own, '.1%')}"
    )
    count = len(own)
    return Finding.of(figure, sum(own) > sum(mean), sum(own) >= sum(heads) - 0.005 * count, 3 * sizes[1] <= sizes[0])


FRAMES, GRID = 20, 12
ACTIONS = 6


def actions(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Videos ``(count, 20, 16, 9)`` of a spot that moves over 12 × 12 pixels, 16 cells of 9, and which way it goes.

    To the right, down, around either way, to and fro, or in steps; from near the middle, at any pace, with noise.
    """
    labels = torch.randint(ACTIONS, (count,), generator=generator)
    t = torch.arange(FRAMES) / FRAMES * (0.7 + 0.6 * torch.rand(count, 1, generator=generator))
    line, turn, nothing = 8 * t, 2 * pi * t, torch.zeros(count, FRAMES)
    y = torch.stack([nothing, line, 3 * turn.sin(), -3 * turn.sin(), nothing, (2 * t * 4).round()])
    x = torch.stack([line, nothing, 3 * turn.cos(), 3 * turn.cos(), 3 * (2 * turn).sin(), 2 * (line / 2 + 0.5).floor()])
    rows = torch.arange(count)
    start = 5 + 2 * torch.rand(2, count, 1, generator=generator)
    centre = torch.stack([(start[0] + y[labels, rows]) % GRID, (start[1] + x[labels, rows]) % GRID], -1)
    pixel = torch.arange(GRID) + 0.5
    gap = [(centre[..., axis, None] - pixel).abs() for axis in (0, 1)]
    near = [torch.exp(-torch.minimum(g, GRID - g).square() / 2) for g in gap]
    video = torch.einsum("bty,btx->btyx", *near) + 0.1 * torch.randn(count, FRAMES, GRID, GRID, generator=generator)
    return 2 * video.unfold(2, 3, 3).unfold(3, 3, 3).flatten(4).flatten(2, 3), labels


def scaled_features(videos: Tensor, seen: int, scales: int) -> Tensor:
    """``(b, S, n, channels)``: for each scale 4 frames of a longer part of those seen, cells with their positions."""
    if scales == 1:
        windows = [torch.arange(seen)]
    else:
        windows = [torch.linspace(0, seen * (s + 1) / scales - 1, 4).round().long() for s in range(scales)]
    made = []
    for frames in windows:
        places = positions((len(frames), 4, 4), 4)
        made.append(with_places(videos[:, frames].flatten(1, 2), places))
    return torch.stack(made, 1)


@measured(model=("progressive", "single"), seen=(4, 8), rate=(1e-3, 2e-3, 5e-3), seed=range(5), steps=[500])
def beginnings(model: str, seen: int, rate: float, seed: int, steps: int) -> dict[str, float]:
    """Share of unseen actions told from the first few of 20 frames, and the parameters."""
    noise = torch.Generator().manual_seed(77)
    scales = 4 if model == "progressive" else 1
    (videos, labels), (unseen, answers) = actions(3000, noise), actions(600, noise)
    x, there = (scaled_features(some, seen, scales) for some in (videos, unseen))
    sizes: Any = {"latents": 8, "width": 32, "heads": 4, "head_dim": 8}
    net = TemPr(x.shape[3], ACTIONS, scales, tied=True, seed=seed, **sizes)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        rows = torch.randint(len(labels), (32,), generator=generator)
        return F.cross_entropy(ready(x[rows]), labels[rows])

    fit(net, loss, Recipe(steps, rate=rate, seed=seed))
    with torch.no_grad():
        right = (net(there).argmax(1) == answers).float().mean().item()
    return {"right": right, "parameters": net.parameter_count}


def tell_earlier(found: Figures) -> Finding:
    """More actions at either length in the mean of the seeds, each at its best rate, with as many parameters."""
    told, better, rates = [], [], dict.fromkeys(found("rate"))
    for seen in (4, 8):
        many, one = (
            max((found("right", model=model, seen=seen, rate=rate) for rate in rates), key=sum)
            for model in ("progressive", "single")
        )
        told.append(
            f"of {seen} frames {listed(many, '.1%')} by four towers of shared weights, {listed(one, '.1%')} by one"
        )
        better.append(sum(many) > sum(one))
    figure = f"{'; '.join(told)}, each at the best of {len(rates)} rates"
    return Finding.of(figure, *better, len(set(found("parameters"))) == 1)


@measured(n=[4096])
def tempr_doubled(n: int) -> dict[str, float]:
    """FLOPs of the published towers on twice as many features, by those on n."""
    with torch.device("meta"):
        net = TemPr(575, 10)
    return {"ratio": net.tower_flops(2 * n) / net.tower_flops(n)}


@measured(n=[16])
def video_beginnings(n: int) -> dict[str, float]:
    """How far each beginning reaches into n seen frames, and FLOPs of two videos by those of one, small networks."""
    sizes: Any = {"latents": 8, "width": 32, "heads": 4, "head_dim": 8}
    net = TemPrVideo(ACTIONS, 4, 4, 1, (1, 1), (4, 8), 4, towers=sizes).eval().requires_grad_(False)
    places, work = net.beginnings(n), []
    for count in (1, 2):
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(count, 1, n, 32, 32))
        work.append(counter.get_total_flops())
    reached: dict[str, float] = {f"reach {s}": int(part.max()) + 1 for s, part in enumerate(places, 1)}
    return reached | {"frames": n, "taken": places.shape[1], "ratio": work[1] / work[0]}


def begin_alike(found: Figures) -> Finding:
    """Scale s reaches ⌊n s / S⌋ frames, and two videos cost twice one."""
    (row,), ratio = found.rows, found.one("ratio")
    reached = [row[f"reach {s}"] for s in range(1, 5)]
    figure = (
        f"of {row['frames']} frames {listed(reached, 'g')} by {row['taken']} each; two videos cost {ratio:.2f} of one"
    )
    return Finding.of(figure, reached == [row["frames"] * s // 4 for s in range(1, 5)], abs(ratio - 2) < 0.01)
