"""Networks of texts: layers that lack a part, attention over depth, pages, and sentences apart."""

from __future__ import annotations

from math import exp
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.testbeds.pages import VOCABULARY as WORDS
from regard.claims.testbeds.pages import Pages, in_line, pages, written
from regard.claims.testbeds.source import VOCABULARY, characters, held_out_loss, trained, windows
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.experiments.cell import Cell
from regard.hosts import small
from regard.hosts.bert.lait import LayerAdjustable
from regard.mechanisms.scored.softmax import Softmax
from regard.networks.deconstructed import DeconstructedLM
from regard.networks.layerwise_shortcuts.lm import ShortcutLM
from regard.networks.lm import IGNORED, LM, Config
from regard.networks.skimformer.network import Skimformer
from regard.projections.base import Grouped
from regard.train.fit import Recipe, fit

LENGTH = 64
VARIANTS = {
    "no_mixing": "no_mixing",
    "based": "based",
    "self_gated": "self_gated",
    "random_qk": f"random_qk(length={LENGTH})",
    "fixed_qk": f"fixed_qk(length={LENGTH})",
    "static_qk": "static_qk",
}


def small_network(layers: str) -> Any:
    model = DeconstructedLM(Config(29, 24, layers, heads=2), 0).double()
    if "fixed_qk" in layers:
        model.fix(torch.randint(29, (LENGTH,), generator=torch.Generator().manual_seed(1)))
    return model.requires_grad_(False)


@measured(kind=tuple(VARIANTS))
def alone(kind: str) -> dict[str, float]:
    """How far the last seven logits move when the first six tokens are changed."""
    ids, model = torch.randint(29, (1, 13)), small_network(f"{VARIANTS[kind]}*2")
    changed = torch.cat([(ids[:, :6] + 1) % 29, ids[:, 6:]], 1)
    return {"moved": (model(ids)[:, 6:] - model(changed)[:, 6:]).abs().max().item()}


def only_without_mixing(found: Figures) -> Finding:
    """Nothing moves without mixing, all others do."""
    moved = {row["kind"]: row["moved"] for row in found.rows}
    still = moved.pop("no_mixing")
    return Finding.of(
        f"moved by {still:.0g} without mixing, by {min(moved.values()):.1g} else", still == 0, min(moved.values()) > 0
    )


def map_of(model: Any, ids: Tensor) -> Tensor:
    """A of the second layer ``(b, h, n, n)``."""
    seen: dict[str, Any] = {}
    attention = model.layers[1].attention
    handle = attention.register_forward_pre_hook(lambda module, given: seen.setdefault("given", given))
    model(ids)
    handle.remove()
    q, k, _, _ = attention.inputs(*seen["given"])
    return attention.mechanism.weights(q, k, Layout(causal=True))


@measured(kind=("random_qk", "fixed_qk", "static_qk"))
def fixed_maps(kind: str) -> dict[str, float]:
    """How far the map moves with the text, and with the layer below."""
    first, second = torch.randint(29, (2, 1, 13), generator=torch.Generator().manual_seed(3))
    model = small_network(f"softmax, {VARIANTS[kind]}")
    before = map_of(model, first)
    text = (before - map_of(model, second)).abs().max().item()
    model.layers[0].network.down.weight.add_(1)
    return {"text": text, "below": (before - map_of(model, first)).abs().max().item()}


def do_not_know(found: Figures) -> Finding:
    """Random and fixed maps do not know the text, static ones not the layer below, bit for bit."""
    random, fixed = (found.one("text", kind=kind) for kind in ("random_qk", "fixed_qk"))
    static, below = found.one("text", kind="static_qk"), found.one("below", kind="static_qk")
    figure = f"maps move with the text by {random:.0g} (random) and {fixed:.0g} (fixed), static ones by {static:.1g}"
    return Finding.of(f"{figure}, with the layer below by {below:.0g}", random == fixed == below == 0, static > 0)


@measured()
def own_text() -> dict[str, float]:
    """How far a model that reads the text its maps are fixed to is from standard attention."""
    model, standard = small_network(VARIANTS["fixed_qk"] + "*2"), LM(Config(29, 24, "softmax*2", heads=2), 0).double()
    standard.load_state_dict({name: w for name, w in model.state_dict().items() if name not in ("noise", "text")})
    ids = model.text[None, :17]
    return {"apart": (model(ids) - standard(ids)).abs().max().item()}


@measured()
def deconstructed(layers: str, seed: int, steps: int) -> dict[str, float]:
    """Held-out nats a character of four layers, and of counts of pairs of characters."""
    model = DeconstructedLM(Config(VOCABULARY, 48, layers, heads=4), seed)
    if "fixed_qk" in layers:
        model.fix(windows(characters(False), 1, LENGTH, torch.Generator().manual_seed(2))[0])
    seen, unseen = characters(False), characters(True)
    counts = torch.bincount(seen[:-1] * VOCABULARY + seen[1:], minlength=VOCABULARY**2).view(VOCABULARY, -1) + 0.1
    pairs = -(counts / counts.sum(1, keepdim=True)).log()[unseen[:-1], unseen[1:]].mean().item()
    return {"loss": held_out_loss(trained(model, seed, steps)), "pairs": pairs}


def variants() -> list[Cell]:
    """Standard layers, and each variant alone and alternated with them, two seeds.

    After 300 steps standard layers have not learned to attend: they lost 1.92 nats, random and fixed maps 1.90.
    """
    texts = ["softmax*4"]
    for own in VARIANTS.values():
        texts += [f"{own}*4", f"{own}, softmax, {own}, softmax"]
    return [deconstructed.cell(layers=layers, seed=seed, steps=2000) for layers in texts for seed in range(2)]


def alone_is_worse(found: Figures) -> Finding:
    """Every variant alone loses more than standard layers; without mixing as pairs of characters do, to 0.1."""
    standard = found.mean("loss", layers="softmax*4")
    losses = {kind: found.mean("loss", layers=f"{text}*4") for kind, text in VARIANTS.items()}
    shown = ", ".join(f"{kind} {loss:.2f}" for kind, loss in losses.items())
    pairs = found("pairs")[0]
    figure = f"nats a character: standard {standard:.2f}, alone {shown}; pairs of characters {pairs:.2f}"
    return Finding.of(figure, min(losses.values()) > standard, abs(losses["no_mixing"] - pairs) < 0.1)


def alternated_is_near(found: Figures) -> Finding:
    """Alternated with standard layers every variant is within 0.05 nats."""
    standard = found.mean("loss", layers="softmax*4")
    mixed = {kind: f"{text}, softmax, {text}, softmax" for kind, text in VARIANTS.items()}
    gaps = {kind: found.mean("loss", layers=layers) - standard for kind, layers in mixed.items()}
    shown = ", ".join(f"{kind} {gap:+.3f}" for kind, gap in gaps.items())
    return Finding.of(f"alternated, nats beside standard: {shown}", max(gaps.values()) < 0.05)


@measured()
def last_layer() -> dict[str, float]:
    """How far a model with all weight on the last layer is from the one without shortcuts, and with learned weights."""
    config, ids = Config(29, 24, "softmax*3", heads=2), torch.randint(29, (2, 13))
    model, base = ShortcutLM(config, 0), LM(config, 0)
    forced = F.one_hot(torch.tensor(2), 3).float().expand(2, 13, 2, 3)
    with torch.no_grad():
        out = model.read(model.shortcut.mix(model.hidden(ids), forced))
        return {"apart": (out - base(ids)).abs().max().item(), "learned": (model(ids) - base(ids)).abs().max().item()}


@measured(kind=("shortcuts", "baseline"), seed=range(3), steps=[500])
def shortcuts(kind: str, seed: int, steps: int) -> dict[str, float | None]:
    """Held-out loss of a character model at equal parameters, and how weights over depth differ by token and class."""
    config = Config(128, 48, "softmax*4", heads=4)
    model: Any = ShortcutLM(config, seed)
    if kind == "baseline":
        model = LM(config.fitted(model.parameter_count, lambda sizes: LM(sizes, 0).parameter_count), seed)
    loss = held_out_loss(trained(model, seed, steps))
    if kind == "baseline":
        return {"loss": loss, "variance": None, "gap": None}
    codes = windows(characters(True), 64, 64, torch.Generator().manual_seed(0))
    space, letter = codes <= ord(" "), ((codes | 32) >= ord("a")) & ((codes | 32) <= ord("z"))
    with torch.no_grad():
        weights = model.shortcut.weights(model.hidden(codes)).mean(2)
    means = [weights[letter].mean(0), weights[space].mean(0)]
    error = (weights[letter].var(0) / letter.sum() + weights[space].var(0) / space.sum()).sqrt()
    gap = ((means[0] - means[1]).abs() / error).max().item()
    return {"loss": loss, "variance": weights.var((0, 1)).min().item(), "gap": gap}


def loses_no_more(found: Figures) -> Finding:
    """The mean loss is at most that of equal parameters."""
    own, base = (found("loss", kind=kind) for kind in ("shortcuts", "baseline"))
    return Finding.of(f"nats {interval(own)}, equal parameters without {interval(base)}", mean(own) <= mean(base))


def weights_differ(found: Figures) -> Finding:
    """By token, and between letters and blanks by more than five standard errors."""
    variance, gap = (found(name, kind="shortcuts") for name in ("variance", "gap"))
    figure = f"least variance over tokens {min(variance):.1g}; letters and blanks {min(gap):.0f} standard errors apart"
    return Finding.of(figure, min(variance) > 1e-4, min(gap) > 5)


class Products(TorchDispatchMode):
    """Counts the matrix products whose result is n × n."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.count = n, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        product = func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
        self.count += product and tuple(out.shape[-2:]) == (self.n, self.n)
        return out


PLACES, WIDTH, DEPTH, HEADS = 96, 48, 2, 4


@measured(depth=(1, 4))
def products(depth: int) -> dict[str, float | int]:
    """How many products of queries and keys a forward pass has, and how far A moves with the text."""
    drawn, given = pages(2, 0), []
    model = Skimformer(WORDS, 40, depth, 4, PLACES, seed=0)
    model.blocks[-1].register_forward_hook(lambda module, args, out: given.append(args[1]))
    texts = torch.randint(WORDS, (2, *drawn.keys.shape))
    with torch.no_grad(), Products(drawn.keys.shape[1]) as counted:
        model(texts[0], drawn.boxes)
    with torch.no_grad():
        model(texts[1], drawn.boxes)
    return {"products": int(counted.count), "moved": (given[0] - given[1]).abs().max().item()}


def skims_once(found: Figures) -> Finding:
    """One product whatever the depth, and the text moves nothing, bit for bit."""
    counts, moved = found("products"), max(found("moved"))
    figure = f"{listed(counts, 'd')} q·kᵀ in 1 and 4 layers; A moves with the text by {moved:.0g}"
    return Finding.of(figure, set(counts) == {1}, moved == 0)


class Standard(nn.Module):
    """A text encoder with a learned vector for each place in the line: queries and keys from the text."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(PLACES, WIDTH) * 0.1)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        d = WIDTH // HEADS
        self.blocks = nn.ModuleList(
            Block(Attention(Softmax(), Grouped(Sizes(WIDTH, HEADS, HEADS, d, d))), WIDTH, 128) for _ in range(DEPTH)
        )
        self.norm = nn.RMSNorm(WIDTH)

    def loss(self, ids: Tensor, boxes: Tensor, targets: Tensor, keys: Tensor) -> Tensor:
        x = self.embedding(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, Layout(key_mask=keys))
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def nearness(skim: Any, boxes: Tensor, drawn: Pages) -> float:
    """Weight on other words of a word's block, over the share that such words have among all others."""
    weights = skim(boxes, Layout(key_mask=drawn.keys)).mean(1)
    others = drawn.keys[:, :, None] & drawn.keys[:, None] & ~torch.eye(weights.shape[2], dtype=torch.bool)
    same = others & (drawn.block[:, :, None] == drawn.block[:, None])
    mass = ((weights * same).sum(2) / (weights * others).sum(2))[drawn.keys]
    chance = (same.sum(2) / others.sum(2))[drawn.keys]
    return (mass.mean() / chance.mean()).item()


@measured(kind=("layout", "line", "standard"), seed=range(3), steps=[200])
def on_pages(kind: str, seed: int, steps: int) -> dict[str, float | None]:
    """Perplexity of masked words on unseen pages of two columns; weight in a word's own block over chance."""
    drawn, held = pages(2000, 0), pages(256, 1)
    ids, targets = written(held, torch.Generator().manual_seed(9))
    place = (lambda boxes: boxes) if kind == "layout" else in_line
    model: Any = Standard(seed) if kind == "standard" else Skimformer(WORDS, WIDTH, DEPTH, HEADS, PLACES, seed=seed)
    untrained = None if kind == "standard" else nearness(model.skim, place(held.boxes), held)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        part = drawn[torch.randint(len(drawn.keys), (32,), generator=generator)]
        words, wanted = written(part, generator)
        return model.loss(words, place(part.boxes), wanted, part.keys)

    fit(model, loss, Recipe(steps, rate=5e-3, seed=seed))
    with torch.no_grad():
        perplexity = exp(model.loss(ids, place(held.boxes), targets, held.keys).item())
    near = None if kind == "standard" else nearness(model.skim, place(held.boxes), held)
    return {"perplexity": perplexity, "near": near, "untrained": untrained}


def reads_pages(found: Figures) -> Finding:
    """In every seed below 1-D positions and a standard encoder."""
    own, line, standard = (found("perplexity", kind=kind) for kind in ("layout", "line", "standard"))
    shown = (listed(values, ".1f") for values in (own, line, standard))
    figure = "perplexity {}, with 1-D positions {}, a standard encoder {}".format(*shown)
    return Finding.of(figure, all(a < min(b, c) for a, b, c in zip(own, line, standard, strict=True)))


def looks_in_its_block(found: Figures) -> Finding:
    """At least twice chance, below 1.5 times untrained."""
    near, untrained = (found(name, kind="layout") for name in ("near", "untrained"))
    return Finding.of(
        f"{listed(near, '.1f')} times chance, untrained {listed(untrained, '.1f')}",
        min(near) >= 2,
        max(untrained) < 1.5,
    )


def sentences() -> tuple[Any, list[Tensor]]:
    model, tokenizer = small.load("minilm")
    texts = ("The river runs to the sea.", "Where does the water of a river go in the end?")
    return model, [tokenizer(text, return_tensors="pt").input_ids for text in texts]


@measured()
def nothing_apart() -> dict[str, float]:
    """How far MiniLM with no layers apart is from MiniLM on both segments as one text."""
    model, segments = sentences()
    kinds = torch.cat([torch.full_like(ids, i) for i, ids in enumerate(segments)], 1)
    with torch.no_grad():
        want = model(input_ids=torch.cat(segments, 1), token_type_ids=kinds).last_hidden_state
        return {"apart": (LayerAdjustable(model, 0)(*segments) - want).abs().max().item()}


@measured(layers=(1, 4, 6))
def cached_segments(layers: int) -> dict[str, float]:
    """How far segments encoded once, one of them in a batch, are from those encoded anew."""
    model, segments = sentences()
    with torch.no_grad():
        lait = LayerAdjustable(model, layers)
        second = lait.encode(segments[1].repeat(3, 1), 1)[1:2]
        joined = lait.join([lait.encode(segments[0]), second])
        return {"apart": (joined - lait(*segments)).abs().max().item()}


@measured()
def spared() -> dict[str, float]:
    """The share of attention's pairs that 4 of 6 layers apart spare, two segments of 64 tokens."""
    model, _ = small.load("minilm")
    whole, part = (LayerAdjustable(model, apart).pairs([64, 64]) for apart in (0, 4))
    return {"share": 1 - part / whole}
