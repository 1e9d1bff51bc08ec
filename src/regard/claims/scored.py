"""Scores of other kinds, and rows that are scaled, gated, signed or biased: what they are for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.small_lm import at_best_rate, both
from regard.core.layout import Layout
from regard.experiments.cell import Cell
from regard.mechanisms.scored.differential import Differential
from regard.projections.rotary import Rotary
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)


def draw(n: int = 37, heads: int = 2, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, dim, dtype=torch.float64) for _ in range(3))
    return q, k, v


@measured()
def limits(name: str) -> dict[str, float]:
    """How far the gate of one, or α = 1 and β = 0, is from softmax attention; what a gate of zero leaves; row sums."""
    q, k, v = draw()
    ones = torch.ones(1, 2, 37, dtype=torch.float64)
    want, mechanism = F.scaled_dot_product_attention(q, k, v, is_causal=True), regard.build(name)
    if name == "gated":
        out, off = mechanism(q, k, v, CAUSAL, gate=ones), mechanism(q, k, v, CAUSAL, gate=0 * ones).abs().max().item()
    else:
        out = mechanism(q, k, v, CAUSAL, alpha=ones, beta=0 * ones)
        sums = mechanism.weights(q, k, CAUSAL, alpha=0.5 * ones, beta=0.25 * ones).sum(-1)
        off = (sums - (0.5 + 0.25 * torch.arange(1, 38)).double()).abs().max().item()
    return {"apart": (out - want).abs().max().item(), "off": off}


def of_gated() -> Cell:
    return limits.cell(name="gated")


def of_affine() -> Cell:
    return limits.cell(name="affine_scaled")


def is_softmax_and_silent(found: Figures) -> Finding:
    """Equal to softmax attention to 1e-12, and silent."""
    apart, off = found.one("apart"), found.one("off")
    return Finding.of(f"gates of one equal to {apart:.0e}, of zero leave {off:.1g}", apart < 1e-12, off == 0)


def is_softmax_and_sums(found: Figures) -> Finding:
    """Equal to softmax attention to 1e-12, sums to 1e-12 of α + β times the visible keys."""
    apart, off = found.one("apart"), found.one("off")
    return Finding.of(f"the limit equal to {apart:.0e}, row sums to {off:.0e}", apart < 1e-12, off < 1e-12)


@measured()
def signs() -> dict[str, float]:
    """Of cog attention: how far the absolute weights' sums are from one, and the share of negative weights."""
    q, k, _ = draw()
    weights = regard.build("cog").weights(q, k, CAUSAL)
    return {"off": (weights.abs().sum(-1) - 1).abs().max().item(), "negative": (weights < 0).double().mean().item()}


def both_signs(found: Figures) -> Finding:
    """Sums of one to 1e-12, and over a tenth of the weights negative."""
    off, negative = found.one("off"), found.one("negative")
    return Finding.of(
        f"absolute sums one to {off:.0e}, {negative:.0%} of the weights negative", off < 1e-12, negative > 0.1
    )


def stays_apart(found: Figures) -> Finding:
    """Repeating the last token moves the last state further than softmax's."""
    plain, other = at_best_rate(found, "gap")
    figure = (
        f"repeating a text's last token changes what follows by {interval(other)}, with softmax by {interval(plain)}"
    )
    return Finding.of(figure, sum(other) > sum(plain))


@measured()
def trend() -> dict[str, float]:
    """Slope of the mean score of 4,096 independent pairs over 512 distances, its standard error, and rotary's trend."""
    torch.manual_seed(0)
    n, pairs, dim = 513, 4096, 64
    far = torch.arange(n, dtype=torch.float64)
    q, k = (torch.randn(pairs, dim, dtype=torch.float64) for _ in range(2))
    amplitude = (q[:, :32] * k[:, :32]).sum(-1) / 32**0.5
    phase = (q[:, 32:] * k[:, 32:]).sum(-1) / 32**0.5
    scores = amplitude[:, None] * torch.cos(2 * torch.pi * far**0.1 * phase[:, None])
    centred = far - far.mean()
    each = (scores * centred).sum(-1) / centred.square().sum()
    turned = Rotary(dim)(torch.ones(1, 1, n, dim), torch.arange(n)[None]).double()
    like = torch.corrcoef(torch.stack([far, (turned[0, 0, :1] * turned[0, 0]).sum(-1)]))[0, 1]
    return {"slope": each.mean().item(), "error": each.std().item() / pairs**0.5, "rotary": like.item()}


def has_no_trend(found: Figures) -> Finding:
    """Within three standard errors of nothing; rotary scores of like vectors correlate with distance."""
    slope, error, rotary = (found.one(name) for name in ("slope", "error", "rotary"))
    figure = (
        f"slope of the mean score {slope:.1e} ± {error:.1e}; rotary scores of like vectors correlate at {rotary:.2f}"
    )
    return Finding.of(figure, abs(slope) < 3 * error, abs(rotary) > 0.5)


def reads_longer_texts(found: Figures) -> Finding:
    """From 64 to 256 characters the loss grows less than with rotary positions."""
    growth = [
        [longer - loss for longer, loss in zip(*pair, strict=True)]
        for pair in zip(both(found, "longer"), both(found, "loss"), strict=True)
    ]
    plain, other = both(found, "loss")
    figure = (
        f"trained on 64 characters, the loss on 256 grows by {interval(growth[1])}, with rotary positions by "
        f"{interval(growth[0])}; on 64 it is {interval(other)} against {interval(plain)}"
    )
    return Finding.of(figure, sum(growth[1]) < sum(growth[0]))


@measured()
def forgotten() -> dict[str, float]:
    """How far forgetting attention is from softmax attention: with open gates, and of what follows a shut one alone."""
    (q, k, v), mechanism = draw(), regard.build("forgetting")
    gates = torch.zeros(1, 2, 37, dtype=torch.float64)
    apart = mechanism(q, k, v, CAUSAL, log_forget=gates) - F.scaled_dot_product_attention(q, k, v, is_causal=True)
    gates[:, :, 19] = -torch.inf
    late = (x[:, :, 19:] for x in (q, k, v))
    alone = regard.build("softmax")(*late, CAUSAL)
    seen = mechanism(q, k, v, CAUSAL, log_forget=gates)[:, :, 19:] - alone
    return {"apart": apart.abs().max().item(), "off": seen.abs().max().item()}


def is_softmax_and_hides(found: Figures) -> Finding:
    """Both to 1e-12."""
    apart, off = found.one("apart"), found.one("off")
    figure = f"open gates equal to {apart:.0e}, what follows a shut one to that alone to {off:.0e}"
    return Finding.of(figure, apart < 1e-12, off < 1e-12)


@measured(layer=(0, 2, 11))
def cancelled(layer: int) -> dict[str, float]:
    """Of differential attention: how far what halves that are alike leave is from 1 − λ; λ's start, and its formula."""
    mechanism = Differential(16, layer).double()
    q, k, v = draw()
    twice = mechanism(torch.cat([q, q], 3), torch.cat([k, k], 3), v, CAUSAL)
    want = (1 - mechanism.share(q)) * F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.no_grad():
        mechanism.vectors.zero_()
    start = mechanism.share(q).item()
    return {"off": (twice - want).abs().max().item(), "start": start, "formula": 0.8 - 0.6 * math.exp(-0.3 * layer)}


def cancels_by_share(found: Figures) -> Finding:
    """To 1e-12; λ starts as the formula has it."""
    off, starts = max(found("off")), found("start")
    shown = (
        f"halves that are alike leave 1 − λ of it to {off:.0e}; λ starts at {listed(starts, '.2f')} in layers 0, 2, 11"
    )
    return Finding.of(shown, off < 1e-12, all(abs(a - b) < 1e-6 for a, b in zip(starts, found("formula"), strict=True)))


@measured()
def shifted() -> dict[str, float]:
    """How far a text is from itself behind 89 tokens of padding or of another document, under linear biases."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 120, 7, dtype=torch.float64) for _ in range(3))
    alibi, documents = regard.build("alibi"), (torch.arange(120) >= 89).long()[None]
    alone = alibi(q[:, :, 89:], k[:, :, 89:], v[:, :, 89:], CAUSAL)
    layouts = (Layout(causal=True, key_mask=documents.bool()), Layout(causal=True, segments=documents))
    return {"apart": max((alibi(q, k, v, layout)[:, :, 89:] - alone).abs().max().item() for layout in layouts)}


@measured()
def factored_pair() -> dict[str, float]:
    """How far neural attention, factored and tiled, is from a network on the concatenated query and key."""
    q, k, v = draw(n=300)
    mechanism = regard.build("neural", heads=2, head_dim=8, hidden=5).double()
    query, key, bias, out = (getattr(mechanism, name) for name in ("query", "key", "bias", "out"))
    joined = torch.cat([q[:, :, :, None].expand(-1, -1, -1, 300, -1), k[:, :, None].expand(-1, -1, 300, -1, -1)], -1)
    hidden = torch.relu(torch.einsum("bhijd,hde->bhije", joined, torch.cat([query, key], 1)) + bias[:, None, None])
    scores = torch.einsum("bhije,he->bhij", hidden, out)
    scores = scores.masked_fill(torch.ones(300, 300, dtype=torch.bool).triu(1), -torch.inf)
    return {"apart": (mechanism(q, k, v, CAUSAL) - torch.softmax(scores, -1) @ v).abs().max().item()}


def parities(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and 8 keys of two bits each (±1); one key's parity differs from the query's: ``(q, k, which)``."""
    query, keys = (torch.randint(2, (count, m, 2), generator=generator) for m in (1, 8))
    answer = torch.randint(8, (count,), generator=generator)
    keys[..., 1] = (keys[..., 0] + query.sum(-1) + F.one_hot(answer, 8)) % 2
    return 2.0 * query - 1, 2.0 * keys - 1, answer


class Pointer(nn.Module):
    """One head on linear maps of bits, which gives its weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.mechanism = regard.build(kind, **({"heads": 1, "head_dim": 16, "hidden": 16} if kind == "neural" else {}))
        self.query, self.key = nn.Linear(2, 16), nn.Linear(2, 16)

    def forward(self, bits: Tensor, keys: Tensor) -> Tensor:
        values = torch.eye(8).expand(len(bits), 1, 8, 8)
        return self.mechanism(self.query(bits)[:, None], self.key(keys)[:, None], values)[:, 0, 0]


@measured(kind=("neural", "softmax"), steps=[2000])
def pointer(kind: str, steps: int) -> dict[str, float]:
    """The share of queries whose largest weight is on the key of another parity, after training."""

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        bits, keys, answer = parities(256, generator)
        return F.nll_loss(model(bits, keys).clamp(min=1e-6).log(), answer)

    torch.manual_seed(0)
    model = fit(Pointer(kind), loss, Recipe(steps, 0.01, decay=0.0))
    bits, keys, answer = parities(4096, torch.Generator().manual_seed(99))
    with torch.no_grad():
        return {"right": (model(bits, keys).argmax(-1) == answer).float().mean().item()}


def selects_by_a_relation(found: Figures) -> Finding:
    """Neural scores over 95%, dot products below 75%."""
    neural, dot = (found.one("right", kind=kind) for kind in ("neural", "softmax"))
    return Finding.of(f"parity of two-bit tokens: {neural:.0%}, dot product {dot:.0%}", neural > 0.95, dot < 0.75)


@measured()
def by_hand() -> dict[str, float]:
    """How far softmax attention is from numbers done by hand: scores log 2 and log 3, weights 2/5 and 3/5."""
    q = torch.tensor([[[[2.0, 0, 0, 0]]]])
    k = torch.tensor([[[[2.0, 0, 0, 0], [3.0, 0, 0, 0]]]]).log().nan_to_num(neginf=0)
    v = torch.tensor([[[[10.0, 0.0], [0.0, 20.0]]]])
    return {"apart": (regard.build("softmax")(q, k, v) - torch.tensor([[[[4.0, 12.0]]]])).abs().max().item()}


@measured()
def repeated() -> dict[str, float]:
    """How far one kv head is from that head repeated."""
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 5, 13, 7), torch.randn(2, 1, 17, 7), torch.randn(2, 1, 17, 11)
    softmax = regard.build("softmax")
    every = softmax(q, k.expand(-1, 5, -1, -1), v.expand(-1, 5, -1, -1), CAUSAL)
    return {"apart": (softmax(q, k, v, CAUSAL) - every).abs().max().item()}


@measured()
def sink() -> dict[str, float]:
    """How far what a row lacks of one is from sigmoid(sink − lse), and the least that one lacks."""
    torch.manual_seed(2)
    q, k, _ = (torch.randn(2, 3, 13, 7, dtype=torch.float64) for _ in range(3))
    mechanism = regard.build("softmax", sink_heads=3).double()
    nn.init.constant_(mechanism.get_parameter("sink"), 1.0)
    missing = 1 - mechanism.weights(q, k, CAUSAL).sum(-1)
    lse = (q @ k.mT / 7**0.5).masked_fill(~torch.ones(13, 13, dtype=torch.bool).tril(), -torch.inf).logsumexp(-1)
    return {"apart": (missing - torch.sigmoid(1 - lse)).abs().max().item(), "least": missing.min().item()}


def takes_its_share(found: Figures) -> Finding:
    """Exactly, to 1e-12, and more than a hundredth."""
    apart, least = found.one("apart"), found.one("least")
    return Finding.of(
        f"a row lacks sigmoid(sink − lse) to {apart:.0e}, {least:.1%} at least", apart < 1e-12, least > 0.01
    )


@measured()
def torus() -> dict[str, float]:
    """How far factored attention's matrix is from offsets on a 2 × 3 torus by hand, and from that of other inputs."""
    mechanism = regard.build("factored", heads=2, grid=(2, 3)).double()
    table = next(iter(mechanism.parameters()))
    nn.init.normal_(table)
    q = torch.randn(1, 2, 6, 4, dtype=torch.float64)
    cells = [divmod(i, 3) for i in range(6)]
    a, other = (mechanism.weights(x, x)[0] for x in (q, q + 1))
    rows = table.detach().view(2, -1)
    want = torch.stack(
        [torch.stack([rows[:, (r - s) % 2 * 3 + (c - t) % 3] for s, t in cells], -1) for r, c in cells], 1
    )
    return {"apart": (a - want).abs().max().item(), "inputs": (a - other).abs().max().item()}


def is_the_same_for_all(found: Figures) -> Finding:
    """By hand to 1e-12, and the same for every input."""
    apart, inputs = found.one("apart"), found.one("inputs")
    return Finding.of(f"by hand to {apart:.0e}, between inputs {inputs:.0g}", apart < 1e-12, inputs == 0)
