"""Projections: limits that are multi-head attention, sizes by formula, and what small models lose by them."""

from __future__ import annotations

import time
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from regard.blocks.attention import Attention
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.small_lm import beside, both, cells
from regard.claims.testbeds.digits import accuracy
from regard.claims.testbeds.source import VOCABULARY, package_accuracy
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.experiments.cell import Cell
from regard.networks import LM, Config
from regard.networks.vision.vit import ViT
from regard.projections.base import Grouped, Projection
from regard.projections.fewer import FewerMatrices
from regard.projections.latent import ExpandedQueries, Latent
from regard.projections.rotary import Rotary
from regard.projections.shared import HeadEmbeddings, KnockingHeads, Merged, to_groups

CAUSAL, WIDTH = Layout(causal=True), 24


def attention(projection: Projection, rotary: Rotary | None = None) -> Any:
    return Attention(regard.build("softmax"), projection, rotary).double()


def hidden(n: int = 17) -> Tensor:
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def extended(layer: Any, x: Tensor) -> tuple[Tensor, Any]:
    """The layer's output in four calls, and its state."""
    state, parts = layer.start(2, dtype=torch.float64), []
    for part in x.split([8, 1, 1, x.shape[1] - 10], dim=1):
        out, state = layer.extend(part, state)
        parts.append(out)
    return torch.cat(parts, 1), state


@measured()
def multi_query() -> dict[str, float]:
    """How often a cache of one head fits into that of all, and how far equal heads are from their conversion."""
    whole = Grouped(Sizes(WIDTH, 4, 4, 5, 7)).double()
    share = whole.cached_numbers / to_groups(whole).cached_numbers
    with torch.no_grad():
        for matrix, size in ((whole.k, 5), (whole.v, 7)):
            matrix.weight.copy_(matrix.weight[:size].repeat(4, 1))
    apart = attention(to_groups(whole))(hidden(), CAUSAL) - attention(whole)(hidden(), CAUSAL)
    return {"share": share, "apart": apart.abs().max().item()}


def caches_one_head(found: Figures) -> Finding:
    """1 / h of the cache for h = 4, and equal heads convert to 1e-12."""
    share, apart = found.one("share"), found.one("apart")
    return Finding.of(
        f"cache 1 / {share:g} for four heads; equal heads convert to {apart:.0e}", share == 4, apart < 1e-12
    )


@measured()
def decoding() -> dict[str, float]:
    """Tokens a second of one kv head over those of eight, at 4,096 tokens of context and a batch of eight."""
    models: dict[int, LM] = {}
    states: dict[int, Any] = {}
    with torch.no_grad():
        for groups in (8, 1):
            model = LM(Config(128, 512, "softmax*2", heads=8, kv_heads=groups, inner=64), 0)
            past, state = torch.randint(128, (8, 512)), model.start(8)
            for _ in range(8):
                _, state = model.extend(past, state)
            models[groups], states[groups] = model, state
        ratios = []
        for _ in range(9):
            times = {}
            for groups, model in models.items():
                state, begun = states[groups], time.perf_counter()
                for _ in range(4):
                    _, state = model.extend(torch.zeros(8, 1, dtype=torch.int64), state)
                times[groups] = time.perf_counter() - begun
                del state
            ratios.append(times[8] / times[1])
    return {"ratio": median(ratios)}


@measured()
def embeddings() -> dict[str, float]:
    """Parameters beyond one shared projection, in units of 3 h d, and how far heads of equal embeddings are apart."""
    projection = HeadEmbeddings(WIDTH, 4, 6, 6).double()
    more = projection.parameter_count - (3 * WIDTH * 6 + 4 * 6 * WIDTH)
    with torch.no_grad():
        for embedding in projection.embeddings:
            embedding.copy_(embedding[:1].expand_as(embedding))
    apart = max((part - part[:, :1]).abs().max().item() for part in projection(hidden(), hidden()))
    return {"more": more / (3 * 4 * 6), "apart": apart}


def are_few(found: Figures) -> Finding:
    """Exactly 3 h d, and equal embeddings make equal heads."""
    more, apart = found.one("more"), found.one("apart")
    return Finding.of(f"{more:g} × 3 h d more; heads of equal embeddings differ by {apart:.0g}", more == 1, apart == 0)


EMBEDDED = ("head_embeddings(form=add)", "head_embeddings(form=multiply)")


def embedded_models() -> list[Cell]:
    return [cell for projection in ("grouped", *EMBEDDED) for cell in cells("softmax*2", projection)]


def tells_as_many_characters(found: Figures) -> Finding:
    """At least 95% as many next characters as with multi-head attention."""
    right = {projection: found("right", projection=projection) for projection in ("grouped", *EMBEDDED)}
    own = [mean(right[projection]) / mean(right["grouped"]) for projection in EMBEDDED]
    return Finding.of(f"{listed(own, '.1%')} as many next characters as multi-head attention", min(own) >= 0.95)


FORMS: dict[str, dict[str, Any]] = {
    "MHA": {"heads": 4},
    "efficient": {"heads": 1, "projection": "super_attention(form=efficient)"},
    "super": {"heads": 1, "projection": "super_attention(form=super, length={})"},
    "add": {"heads": 4, "projection": "head_embeddings(form=add)"},
    "multiply": {"heads": 4, "projection": "head_embeddings(form=multiply)"},
}


def network(form: str, classes: int, seed: int, image: tuple[int, int], patch: int, channels: int = 1) -> ViT:
    """Two layers with this projection."""
    tokens = image[0] * image[1] // patch**2
    change = {name: value.format(tokens) if name == "projection" else value for name, value in FORMS[form].items()}
    return ViT(Config(classes, 32, "softmax*2", **change), image, patch, channels=channels, seed=seed)


@measured(form=("MHA", "efficient", "super"), seed=range(3), steps=[2000])
def on_digits(form: str, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on held-out digits."""
    return {"right": accuracy(network(form, 10, seed, (8, 8), 2), seed, steps=steps)}


@measured(form=tuple(FORMS), seed=range(3), steps=[300])
def on_texts(form: str, seed: int, steps: int) -> dict[str, float]:
    """How often the package, one of five, of 64 characters of unseen source is told."""
    return {"right": package_accuracy(network(form, 5, seed, (1, 64), 1, VOCABULARY), seed, steps)}


@measured(form=("MHA", "add", "multiply"), seed=range(3), steps=[600])
def on_long_texts(form: str, seed: int, steps: int) -> dict[str, float]:
    """The same of 256 characters, twice as long."""
    model = network(form, 5, seed, (1, 256), 1, VOCABULARY)
    return {"right": package_accuracy(model, seed, steps, length=256)}


def texts_of(forms: str) -> list[Cell]:
    return [on_texts.cell(form=form, seed=seed, steps=300) for form in forms.split() for seed in range(3)]


def within_a_point(found: Figures, forms: str, points: float = 0.01) -> Finding:
    """The mean accuracy of each form is less than so many points below multi-head attention's."""
    right = {form: found("right", form=form) for form in ("MHA", *forms.split())}
    shown = ", ".join(f"{form} {interval(values, '.1%')}" for form, values in right.items())
    return Finding.of(shown, min(map(mean, right.values())) > mean(right["MHA"]) - points)


def keeps_most(found: Figures, forms: str) -> Finding:
    """The mean accuracy of each form is at least 95% of multi-head attention's."""
    right = {form: found("right", form=form) for form in ("MHA", *forms.split())}
    shown = ", ".join(f"{form} {interval(values, '.1%')}" for form, values in right.items())
    return Finding.of(shown, min(map(mean, right.values())) >= 0.95 * mean(right["MHA"]))


@measured()
def knocking() -> dict[str, float]:
    """How far maps of the identity are from multi-head attention, with a gated network too, and other maps folded."""
    torch.manual_seed(0)
    found, x = {}, hidden()
    for values in ("linear", "gated"):
        made = KnockingHeads(Sizes(WIDTH, 4, 2, 5, 7), values).double()
        plain, weights = Grouped(Sizes(WIDTH, 4, 2, 5, 7)).double(), made.state_dict()
        plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
        found[values] = (attention(made)(x, CAUSAL) - attention(plain)(x, CAUSAL)).abs().max().item()
    made = KnockingHeads(Sizes(WIDTH, 4, 2, 5, 7)).double()
    with torch.no_grad():
        for mix in made.mixes:
            mix.add_(0.3 * torch.randn_like(mix))
    folded = attention(made.folded())(x, CAUSAL) - attention(made)(x, CAUSAL)
    return found | {"folded": folded.abs().max().item()}


def begins_and_folds(found: Figures) -> Finding:
    """Begins as multi-head attention exactly, folds to 1e-12."""
    linear, gated, folded = (found.one(name) for name in ("linear", "gated", "folded"))
    figure = f"differs at first by {max(linear, gated):.0g}; folded equal to {folded:.0e}"
    return Finding.of(figure, linear == gated == 0, folded < 1e-12)


@measured()
def fewer() -> dict[str, float]:
    """Parameters over multi-head attention's, and how far each form is from it with the identity for what it lacks."""
    whole, found, worst = Grouped(Sizes(WIDTH, 4, 4, 6, 6)), {}, 0.0
    forms = {"optimised": FewerMatrices(WIDTH, 4, "optimised"), "efficient": FewerMatrices(WIDTH, 1, "efficient")}
    for form, made in forms.items():
        made, heads = made.double(), made.heads
        found[form] = made.parameter_count / whole.parameter_count
        plain = Grouped(Sizes.even(WIDTH, heads)).double()
        with torch.no_grad():
            for name in ("q", "k", "v", "out"):
                source = getattr(made, name, None)
                given = source.weight if isinstance(source, torch.nn.Linear) else torch.eye(WIDTH)
                getattr(plain, name).weight.copy_(given)
        apart = attention(made)(hidden(), CAUSAL) - attention(plain)(hidden(), CAUSAL)
        worst = max(worst, apart.abs().max().item())
    super_form = FewerMatrices(WIDTH, 1, "super", length=WIDTH)
    return found | {"super": super_form.parameter_count / whole.parameter_count, "apart": worst}


def has_fewer(found: Figures) -> Finding:
    """3/4, 1/2 and, where the length is the width, 3/4; equal to 1e-12."""
    shares = [found.one(form) for form in ("optimised", "efficient", "super")]
    apart = found.one("apart")
    figure = f"{listed(shares, 'g')} of the parameters; equal to multi-head attention to {apart:.0e}"
    return Finding.of(figure, shares == [0.75, 0.5, 0.75], apart < 1e-12)


@measured()
def merged() -> dict[str, float]:
    """How far scores by one matrix are from those by two, and those of a symmetric one from their transposes."""
    x, plain, one = hidden(), Grouped(Sizes(WIDTH, 3, 3, 5, 5)).double(), Merged(WIDTH, 3).double()
    queries, keys = (w.weight.view(3, 5, WIDTH) for w in (plain.q, plain.k))
    with torch.no_grad():
        one.between.copy_(queries.mT @ keys)
    first, second = (q @ k.mT for q, k, _ in (plain(x, x), one(x, x)))
    q, k, _ = Merged(WIDTH, 2, symmetric=True).double()(x, x)
    scores = q @ k.mT
    return {"apart": (first - second).abs().max().item(), "turned": (scores - scores.mT).abs().max().item()}


def scores_the_same(found: Figures) -> Finding:
    """The same scores to 1e-11, symmetric ones to 1e-12."""
    apart, turned = found.one("apart"), found.one("turned")
    return Finding.of(f"scores to {apart:.0e}, symmetry to {turned:.0e}", apart < 1e-11, turned < 1e-12)


ARMS: dict[str, dict[str, Any]] = {
    "full": {"width": 32, "heads": 4},
    "merged": {"width": 32, "heads": 1, "inner": 0, "projection": "merged_query_key"},
    "left out": {"width": 44, "heads": 1, "inner": 0, "projection": "merged_query_key(out=False)"},
}
"""What is left out is made up for by width, to a fifth of the full transformer's parameters at most."""


@measured(arm=tuple(ARMS), seed=range(3), steps=[2000])
def minimal(arm: str, seed: int, steps: int) -> dict[str, float | int]:
    """Digits with six layers: accuracy and parameters; without networks but in the full transformer."""
    model = ViT(Config(10, layers="softmax*6", **ARMS[arm]), (8, 8), 2, seed=seed)
    return {"right": accuracy(model, seed, steps=steps), "parameters": model.parameter_count}


def tells_digits_as_well(found: Figures, arm: str) -> Finding:
    """Within a point of the full transformer with at most a fifth of its parameters."""
    right, full = (found("right", arm=name) for name in (arm, "full"))
    share = found("parameters", arm=arm)[0] / found("parameters", arm="full")[0]
    figure = f"value and output {arm}: digits {interval(right, '.1%')} with {share:.0%} of the parameters"
    figure = f"{figure}, the full transformer {interval(full, '.1%')}"
    return Finding.of(figure, mean(right) > mean(full) - 0.01, share <= 0.2)


@measured(rotary=(0, 4), query_rank=(0, 10))
def absorbed(rotary: int, query_rank: int) -> dict[str, float]:
    """How far the absorbed form is from the expanded one, in one call and in four."""
    torch.manual_seed(0)
    expanded = Latent(WIDTH, 3, 6, 5, rotary, 7, query_rank).double()
    turn = Rotary(rotary) if rotary else None
    x = hidden(19)
    want = attention(expanded, turn)(x, CAUSAL)
    layer = attention(expanded.as_form("absorbed"), turn)
    return {"apart": max((out - want).abs().max().item() for out in (layer(x, CAUSAL), extended(layer, x)[0]))}


@measured(kv_heads=(4, 2))
def expanded_queries(kv_heads: int) -> dict[str, float]:
    """How far queries that are expanded are from multi-head attention, in one call and four; the cache in widths."""
    torch.manual_seed(0)
    plain, x = Grouped(Sizes(WIDTH, 4, kv_heads, 5, 7)).double(), hidden(19)
    want, layer = attention(plain)(x, CAUSAL), attention(ExpandedQueries(plain))
    out, state = extended(layer, x)
    apart = max((got - want).abs().max().item() for got in (layer(x, CAUSAL), out))
    return {"apart": apart, "cache": state.bytes / (2 * 19 * 8 * WIDTH)}


def caches_hidden_states(found: Figures) -> Finding:
    """Equal to 1e-10, and the cache is one hidden state a token."""
    apart, cache = max(found("apart")), set(found("cache"))
    figure = f"equal to {apart:.0e} in one call and token by token; {max(cache):g} vectors a token are kept"
    return Finding.of(figure, apart < 1e-10, cache == {1})


@measured(at=("query", "key", "value", "heads", "output"), each=(True, False))
def gate(at: str, each: bool) -> dict[str, float]:
    """How far a layer with a gate at this place is from its equation, for coordinates or heads."""
    from regard.projections.gates import Gates

    torch.manual_seed(0)
    layer, x = attention(Gates(Sizes(WIDTH, 4, 2, 5, 7), at, each)), hidden()  # pyright: ignore
    p = layer.projection
    q, k, v = p.q(x), p.k(x), p.v(x)
    size = {"query": 5, "key": 5, "value": 7, "heads": 7, "output": WIDTH}[at]
    opened = torch.sigmoid(x @ p.gate.weight.T)
    opened = opened if each else opened.repeat_interleave(size, -1)
    q, k, v = (part * opened if at == name else part for name, part in (("query", q), ("key", k), ("value", v)))
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part, heads in ((q, 4), (k, 2), (v, 2)))
    k, v = (part.repeat_interleave(2, 1) for part in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    out = p.out(out * opened if at == "heads" else out)
    return {"apart": (layer(x, CAUSAL) - (out * opened if at == "output" else out)).abs().max().item()}


GATED = "gates(at=heads)"


def gated_models() -> list[Cell]:
    return beside("softmax*2", GATED)


def gated_and_fast() -> list[Cell]:
    return beside("softmax*2", GATED, rate=3e-2)


def opens_little(found: Figures) -> Finding:
    """Gates are open by less than half on average."""
    opened = [row["opened"] for row in found.rows if row["opened"] is not None]
    return Finding.of(f"opened by {interval(opened, '.2f')} on average", mean(opened) < 0.5)


def loses_less(found: Figures) -> Finding:
    """A smaller loss than without."""
    plain, other = both(found, "loss")
    return Finding.of(f"loss at a rate of 0.03 {interval(other)}, without {interval(plain)}", mean(other) < mean(plain))
