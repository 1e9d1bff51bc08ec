"""Dense attention from parts: each part is its paper's formula, alone and with the others."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import regard
from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.mechanisms.scored.parts.biases import BIASES, bucket
from regard.mechanisms.scored.parts.normalisers import NORMALISERS
from regard.mechanisms.scored.parts.scores import SCORES
from regard.networks import LM, Config
from regard.projections.base import Grouped

HEADS, DIM, N = 2, 5, 12
EXACT = {"atol": 1e-12, "rtol": 1e-12}
TEXTS = {"network": "network(hidden=3)", "t5": "t5(buckets=8, max_distance=9)", "table": "table(grid=(3, 4))"}
OFFERED = [
    (score, bias, normaliser)
    for score, bias, normaliser in itertools.product(SCORES, BIASES, NORMALISERS)
    if not (score == "distance" and bias in ("none", "alibi", "forget") and normaliser in ("relu", "signed"))
    and (bias, normaliser) != ("forget", "queries")
]


def composed(score="dot", bias="none", normaliser="softmax", **after):
    """Built from these names, in float64, its parameters drawn."""
    torch.manual_seed(1)
    texts = [TEXTS.get(name, name) for name in (score, bias, normaliser)]
    made = regard.build("composed", **dict(zip(("score", "bias", "normaliser"), texts, strict=True)), heads=HEADS,
                        head_dim=DIM, **after).double()  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def draw(mechanism=None, n=N, seed=0):
    """q, k, v, and the mechanism's signals."""
    torch.manual_seed(seed)
    qkv = [torch.randn(2, HEADS, n, dim, dtype=torch.float64) for dim in (DIM, DIM, 7)]
    drawn = {name: torch.rand(2, HEADS, n, dtype=torch.float64) for name in getattr(mechanism, "signals", ())}
    return qkv, {name: x.log() if name == "log_forget" else x for name, x in drawn.items()}


def scores_of(name, part, q, k):
    """The papers' scores, pair by pair."""
    x, y = q[:, :, :, None], k[:, :, None]
    if name == "dot":
        return (x * y).sum(-1) / DIM**0.5
    if name == "additive":
        return (torch.tanh(x + y) * part.out[:, None, None]).sum(-1)
    if name == "distance":
        return -(x - y).square().sum(-1) / DIM**0.5
    if name == "bilinear":
        return torch.einsum("bhid,hde,bhje->bhij", q, part.map, k)
    if name == "trilinear":
        words = torch.cat([part.query, part.key, part.both], 1)
        pair = torch.cat([x.expand(-1, -1, -1, N, -1), y.expand(-1, -1, N, -1, -1), x * y], -1)
        return torch.einsum("bhijd,hd->bhij", pair, words)
    if name == "network":
        pair = torch.cat([x.expand(-1, -1, -1, N, -1), y.expand(-1, -1, N, -1, -1)], -1)
        hidden = torch.einsum("bhijd,hde->bhije", pair, torch.cat([part.query, part.key], 1))
        return torch.einsum("bhije,he->bhij", torch.relu(hidden + part.bias[:, None, None]), part.out)
    half, places = round(DIM / 2), torch.arange(N, dtype=torch.float64)
    amplitude, phase = ((x * y)[..., s].sum(-1) for s in (slice(0, half), slice(half, DIM)))
    far = (places[:, None] - places).abs() ** 0.1
    return amplitude / half**0.5 * torch.cos(2 * math.pi * far * phase / (DIM - half) ** 0.5)


def bias_of(name, part, causal, signals):
    """The papers' biases, entry by entry."""
    found = torch.zeros(2, HEADS, N, N, dtype=torch.float64)
    for h, i, j in itertools.product(range(HEADS), range(N), range(N)):
        if name == "alibi":
            found[:, h, i, j] = -(2.0 ** (-8 * (h + 1) / HEADS)) * abs(i - j)
        if name == "t5":
            found[:, h, i, j] = part.table[h, t5_bucket(torch.tensor(j - i), causal, 8, 9)]
        if name == "table":
            found[:, h, i, j] = part.table[h].view(5, 7)[i // 4 - j // 4 + 2, i % 4 - j % 4 + 3]
        if name == "forget":
            found[:, h, i, j] = signals["log_forget"][:, h, j + 1 : i + 1].sum(-1)
    return found


def weights_of(name, part, scores, seen, signals):
    """The papers' normalisers."""
    hidden = scores.masked_fill(~seen, -torch.inf)
    count = seen.sum(-1, keepdim=True)
    if name == "queries":
        shares = torch.softmax(hidden, 2)
        return shares / shares.sum(3, keepdim=True)
    if name == "signed":
        return torch.softmax(hidden.abs().masked_fill(~seen, -torch.inf), -1) * scores.sign()
    if name == "sigmoid":
        return torch.where(seen, 1 / (1 + count * torch.exp(-scores)), 0)
    if name == "relu":
        return torch.where(seen, scores.clamp(min=0) / count, 0)
    if name == "laplace":
        mean, deviation = torch.tensor([1 / 2, 1 / (4 * math.pi)], dtype=torch.float64).sqrt()
        normal = torch.distributions.Normal(mean, deviation)
        return torch.where(seen, normal.cdf(scores), 0)
    if name == "affine":
        mixed = signals["alpha"][..., None] * torch.softmax(hidden, -1) + signals["beta"][..., None]
        return torch.where(seen, mixed, 0)
    return torch.softmax(hidden, -1)


def t5_bucket(ahead, causal, buckets, max_distance):
    """Transformers' own."""
    from transformers.models.t5.modeling_t5 import T5Attention

    return T5Attention._relative_position_bucket(ahead, not causal, buckets, max_distance)


@pytest.mark.parametrize(("score", "bias", "normaliser"), OFFERED)
def test_every_composition_is_its_papers_formulas(score, bias, normaliser):
    """All 164 compositions, fast and by definition, equal the papers' formulas; gradients and decoding agree."""
    mechanism = composed(score, bias, normaliser)
    (q, k, v), signals = draw(mechanism)
    for causal in [False] * mechanism.traits.bidirectional + [True] * mechanism.traits.causal:
        layout = Layout(causal=causal)
        scores = scores_of(score, mechanism.scorer, q, k) + bias_of(bias, mechanism.bias, causal, signals)
        want = weights_of(normaliser, mechanism.normaliser, scores, layout.allowed(N, N), signals)
        torch.testing.assert_close(mechanism.weights(q, k, layout, **signals), want, **EXACT)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)] + list(mechanism.parameters())
        out = mechanism(*leaves[:3], layout, **signals)
        torch.testing.assert_close(out, want @ v, **EXACT)
        slow = mechanism.weights(*leaves[:2], layout, **signals) @ leaves[2]
        found, wanted = (torch.autograd.grad(x.square().sum(), leaves) for x in (out, slow))
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    if not mechanism.traits.causal:
        return
    state, parts = mechanism.start(2, dtype=torch.float64), []
    keys = torch.ones(2, N, dtype=torch.bool)
    keys[0, :3] = keys[1, 4:6] = False
    for span in (slice(0, 7), slice(7, 8), slice(8, N)):
        given = {name: signal[:, :, span] for name, signal in signals.items()}
        part, state = mechanism.extend(*(x[:, :, span] for x in (q, k, v)), state, keys[:, span], **given)
        parts.append(part)
    whole = mechanism(q, k, v, Layout(causal=True, key_mask=keys), **signals)
    torch.testing.assert_close(torch.cat(parts, 2).mT[keys[:, None, None].expand(-1, HEADS, 7, -1)],
                               whole.mT[keys[:, None, None].expand(-1, HEADS, 7, -1)], **EXACT)  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_are_those_of_t5(causal):
    """The bucket of every distance to 1,200 is that of Transformers' T5, for three numbers and reaches."""
    back = torch.arange(-1200, 1201)
    for buckets, max_distance in ((32, 128), (8, 20), (64, 1000)):
        got = bucket(back, buckets, max_distance, causal)
        assert torch.equal(got, t5_bucket(-back, causal, buckets, max_distance))
        assert len(got.unique()) > buckets * 3 / 4


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_of_t5(causal):
    """Transformers' T5 attention with relative bias, its weights copied, equals `composed` of dot(scale=1) and t5."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    torch.manual_seed(0)
    sizes = {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40}
    config = T5Config(d_model=10, d_kv=DIM, num_heads=HEADS, is_decoder=causal, dropout_rate=0.0, **sizes)
    config._attn_implementation = "eager"
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double().eval()
    text = "t5(buckets=16, max_distance=40)"
    mechanism = regard.build("composed", score="dot(scale=1.0)", bias=text, heads=HEADS, head_dim=DIM).double()
    mechanism.load_state_dict({"bias.table": theirs.relative_attention_bias.weight.T})
    x = torch.randn(2, 150, 10, dtype=torch.float64)
    q, k, v = (apart(matrix(x)) for matrix in (theirs.q, theirs.k, theirs.v))
    hidden = torch.full((150, 150), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    want = theirs(x, mask=hidden if causal else None)[0]
    got = theirs.o(mechanism(q, k, v, Layout(causal=causal)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, want, **EXACT)


def test_a_window_of_swin():
    """Transformers' Swin attention in a window of 4 × 4, its weights copied, equals `composed` of dot and table."""
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinAttention

    torch.manual_seed(0)
    config = SwinConfig()
    config._attn_implementation = "eager"
    theirs = SwinAttention(config, HEADS * DIM, HEADS, 4).double().eval()
    table = theirs.relative_position_bias.relative_position_bias_table
    torch.nn.init.normal_(table)
    mechanism = regard.build("composed", bias="table(grid=(4, 4))", heads=HEADS, head_dim=DIM).double()
    mechanism.load_state_dict({"bias.table": table.T})
    x = torch.randn(2, 16, HEADS * DIM, dtype=torch.float64)
    q, k, v = (apart(matrix(x)) for matrix in (theirs.q_proj, theirs.k_proj, theirs.v_proj))
    got = theirs.o_proj(mechanism(q, k, v, Layout(grid=(4, 4))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, theirs(x)[0], atol=1e-6, rtol=0)  # their softmax is in float32


def apart(x):
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def test_tables_on_lines_and_in_space():
    """A table has one number for each offset on 1 and 3 axes; on a line, offsets beyond its ends are the ends."""
    line = regard.build("composed", bias="table(grid=4)", heads=HEADS, head_dim=DIM).double()
    torch.nn.init.normal_(line.bias.table)
    (q, _, _), _ = draw()
    logits = line.weights(q, 0 * q).log()
    for i, j in itertools.product(range(N), range(N)):
        want = line.bias.table[:, max(-3, min(3, i - j)) + 3] - line.bias.table[:, max(-3, min(3, i)) + 3]
        torch.testing.assert_close(logits[0, :, i, j] - logits[0, :, i, 0], want, **EXACT)
    space = regard.build("composed", bias="table(grid=(2, 2, 3))", heads=HEADS, head_dim=DIM).double()
    torch.nn.init.normal_(space.bias.table)
    table, cells = space.bias.table.view(HEADS, 3, 3, 5), list(itertools.product(range(2), range(2), range(3)))
    logits = space.weights(q, 0 * q).log()
    for (i, r), (j, s) in itertools.product(enumerate(cells), enumerate(cells)):
        first, other = ([a - b + c for a, b, c in zip(r, at, (1, 1, 2), strict=True)] for at in (cells[0], s))
        want = table[(slice(None), *other)] - table[(slice(None), *first)]
        torch.testing.assert_close(logits[0, :, i, j] - logits[0, :, i, 0], want, **EXACT)


SAME = [
    ("softmax", {"softcap": 1.5}, {"softcap": 1.5}),
    ("softmax", {"sink_heads": HEADS}, {"normaliser": "softmax(sinks=True)"}),
    ("alibi", {}, {"bias": "alibi"}),
    ("sigmoid", {}, {"normaliser": "sigmoid"}),
    ("sigmoid", {"bias": -2.0}, {"normaliser": "sigmoid(bias=-2.0)"}),
    ("cog", {}, {"normaliser": "signed"}),
    ("tapa", {"share": 0.4, "power": 0.3}, {"score": "phase(share=0.4, power=0.3)"}),
    ("affine_scaled", {}, {"normaliser": "affine"}),
    ("gated", {}, {"gate": "heads"}),
]


@pytest.mark.parametrize(("name", "config", "parts"), SAME, ids=[f"{name}-{parts}" for name, _, parts in SAME])
def test_known_mechanisms_are_compositions(name, config, parts):
    """Nine published mechanisms equal the composition of their parts, signals, sinks, caps and gates included."""
    known, own = regard.build(name, **config).double(), regard.build("composed", heads=HEADS, **parts).double()
    for parameter in (*known.parameters(), *own.parameters()):
        parameter.data.copy_(torch.tensor([0.5, -0.7]))
    (q, k, v), signals = draw(known)
    assert set(known.signals) == set(own.signals)
    for layout in (Layout(), Layout(causal=True)):
        torch.testing.assert_close(own(q, k, v, layout, **signals), known(q, k, v, layout, **signals), **EXACT)


def test_what_follows_is_the_host():
    """With ``norm`` and ``gate`` a layer divides each head's output by its root mean square and opens each element."""
    mechanism = composed("distance", "t5", norm=True, gate="silu")
    layer = Attention(mechanism, Grouped(Sizes(10, HEADS, HEADS, DIM, DIM))).double()
    x = torch.randn(2, N, 10, dtype=torch.float64)
    out = mechanism(*layer.projection(x, x), Layout(causal=True))
    normed = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = layer.projection.merge(normed * F.silu(apart(layer.output.gate(x))))
    torch.testing.assert_close(layer(x, Layout(causal=True)), want, **EXACT)
    assert layer.rotary is None
    assert composed("distance").layer.rotary


@pytest.mark.parametrize(
    "layers",
    ["composed(score=distance, bias=table)", "composed(score=additive, bias=t5(buckets=8), normaliser=relu(power=2))"],
)
def test_a_model_of_compositions(layers):
    """A language model names compositions as text, gives every parameter a gradient, and decodes as it computes."""
    model = LM(Config(vocabulary=11, width=8, heads=2, layers=layers), seed=0).double()
    ids = torch.randint(11, (2, 17), generator=torch.Generator().manual_seed(0))
    whole = model(ids)
    whole.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    first, state = model.extend(ids[:, :9], model.start(2))
    last, _ = model.extend(ids[:, 9:], state)
    torch.testing.assert_close(torch.cat([first, last], 1), whole, atol=1e-9, rtol=1e-9)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.most = max(self.most, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize(
    "parts",
    [
        ("dot", "t5", "softmax"),
        ("distance", "alibi", "laplace"),
        ("dot", "none", "queries"),
        ("dot", "table", "signed"),
    ],
)
def test_no_matrix_of_all_pairs_is_formed(parts):
    """Forward and backward at 3,001 tokens: the largest tensor of any operation is under a tenth of the matrix."""
    score, bias, normaliser = parts
    bias = "table(grid=(53, 57))" if bias == "table" else bias
    mechanism = regard.build("composed", score=score, bias=bias, normaliser=normaliser, heads=1, head_dim=DIM)
    q, k, v = (torch.randn(1, 1, 3001, DIM, requires_grad=True) for _ in range(3))
    with Largest() as largest:
        mechanism(q, k, v, Layout(causal=normaliser == "softmax")).sum().backward()
    assert largest.most < 3001**2 / 10
