"""Dual attention: relational heads are their definition, without them it is multi-head attention."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.relational import Dual
from regard.projections.rotary import Rotary

CAUSAL, EXACT, WIDTH = Layout(causal=True), {"atol": 1e-12, "rtol": 0}, 24
SYMBOLS = ("attention", "position", "relative")


def attention(kv_heads=4, rotary=None, value_dim=7, **config):
    torch.manual_seed(0)
    sizes = Sizes(WIDTH, 4, kv_heads, 6, value_dim)
    return Attention(regard.build("softmax"), Dual(sizes, **config), rotary).double()


def hidden(n=17, seed=0):
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_without_relational_heads_it_is_multi_head_attention():
    """DAT: no relational heads: the parameters and, bit for bit, the output of the grouped projection."""
    layer = attention(kv_heads=2, relational=0)
    plain = Attention(regard.build("softmax"), Grouped(Sizes(WIDTH, 4, 2, 6, 7))).double()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(hidden(), CAUSAL), plain(hidden(), CAUSAL))
    assert layer.projection.parameter_count == plain.projection.parameter_count


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("symbols", SYMBOLS)
def test_relational_heads_are_their_definition(symbols, symmetric):
    """DAT: the layer equals the equation with every relation r_ij and symbol formed, concatenated with plain heads."""
    config = {"relational": 2, "relations": 3, "symbols": symbols, "symmetric": symmetric}
    layer, x = attention(rotary=Rotary(6), **config), hidden()
    p, place = layer.projection, torch.arange(17)
    q, k = (Rotary(6)(matrix(x).unflatten(2, (4, 6)).transpose(1, 2), place[None]) for matrix in (p.q, p.k))
    weights = (q @ k.mT / 6**0.5).masked_fill(torch.ones(17, 17, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    sensory = weights[:, :2] @ p.v(x).unflatten(2, (2, 7)).transpose(1, 2)
    left, right = (matrix(x).unflatten(2, (3, 4)) for matrix in (p.relation_q, p.relation_k or p.relation_q))
    relations = torch.einsum("bilp,bjlp->bijl", left, right) / 4**0.5
    assert torch.allclose(relations, relations.transpose(1, 2), atol=1e-12) == symmetric
    if symbols == "relative":
        angles = (place[None] - place[:, None])[..., None] * 10_000.0 ** -(torch.arange(0, 8, 2).double() / 8)
        told = torch.einsum("ijf,hfe->hije", torch.cat([angles.cos(), angles.sin()], -1), p.symbol_out)[None]
    else:
        rows = p.rows[place].expand(2, -1, -1)
        if symbols == "attention":
            rows = (p.symbol_q(x) @ p.templates.T / math.sqrt(WIDTH)).softmax(-1) @ p.rows
        told = p.symbol_v(rows).unflatten(2, (2, 7)).transpose(1, 2)[:, :, None]
    messages = torch.einsum("bijl,hle->bhije", relations, p.relation_out) + told
    relational = torch.einsum("bhij,bhije->bhie", weights[:, 2:], messages)
    want = p.out(torch.cat([sensory, relational], 1).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, CAUSAL), want, **EXACT)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("relational", [2, 4])
@pytest.mark.parametrize("symbols", SYMBOLS)
def test_sizes_costs_and_decoding(symbols, relational, kv_heads):
    """DAT: parameters and FLOPs by formula; decoding with padding equals one call; nothing leaks from the future."""
    config = {"relational": relational, "symbols": symbols, "kv_heads": kv_heads, "symmetric": kv_heads == 2}
    layer, x = attention(rotary=Rotary(6), **config), hidden(23)
    assert layer.projection.parameter_count == sum(p.numel() for p in layer.projection.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        want = layer(x, CAUSAL)
    assert layer.cost(23, batch=2, itemsize=8).flops == counter.get_total_flops()
    assert torch.equal(layer(torch.cat([x[:, :9], hidden(14, 1)], 1), CAUSAL)[:, :9], want[:, :9])
    for keys in (None, torch.rand(2, 23, generator=torch.Generator().manual_seed(3)) < 0.7):
        state, parts, start = layer.start(2, dtype=torch.float64), [], 0
        for size in (9, 1, 1, 12):
            out, state = layer.extend(
                x[:, start : start + size], state, None if keys is None else keys[:, start : start + size]
            )
            parts.append(out)
            start += size
        rows = torch.ones(2, 23, dtype=torch.bool) if keys is None else keys
        whole = layer(x, Layout(causal=True, key_mask=keys))
        torch.testing.assert_close(torch.cat(parts, 1)[rows], whole[rows], atol=1e-9, rtol=1e-9)
    assert state.bytes == 2 * 23 * 8 * layer.projection.cached_numbers


def test_bad_input_is_named():
    for change, argument in (
        ({"relational": 5}, "relational"),
        ({"relational": 1}, "relational"),
        ({"relational": 2, "relations": 5}, "relations"),
        ({"relational": 2, "symbols": "none"}, "symbols"),
    ):
        with pytest.raises(ValueError, match=f"{argument}: got"):
            Dual(Sizes(24, 4, 2, 6, 6), **change)  # pyright: ignore
    with pytest.raises(ValueError, match="library: got 4, want 17"):
        attention(value_dim=6, symbols="position", library=4)(hidden())
    with pytest.raises(ValueError, match="context"):
        attention(value_dim=6, symbols="relative")(hidden(), context=hidden(5))
