"""Attention of higher order: order 1 is multi-head attention, and one layer of order 2 looks up two hops."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.blocks.attention import Attention
from regard.core.build import build_text
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.nexus import Nexus
from regard.projections.rotary import Rotary

CAUSAL, EXACT, WIDTH = Layout(causal=True), {"atol": 1e-12, "rtol": 0}, 24


def attention(order, mechanism="softmax", rotary=None):
    torch.manual_seed(0)
    return Attention(regard.build(mechanism), Nexus(Sizes(WIDTH, 4, 4, 6, 7), order), rotary).double()


def hidden(n=17, seed=0):
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_order_one_is_multi_head_attention_and_no_order_has_more_parameters():
    """Nexus: order 1 equals the grouped projection bit for bit; all orders have its parameters."""
    plain = Attention(regard.build("softmax"), Grouped(Sizes(WIDTH, 4, 4, 6, 7))).double()
    counts = {order: sum(p.numel() for p in attention(order).parameters()) for order in (1, 2, 3, 4)}
    assert set(counts.values()) == {plain.projection.parameter_count}
    plain.load_state_dict(attention(1).state_dict())
    assert torch.equal(attention(1)(hidden(), CAUSAL), plain(hidden(), CAUSAL))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("order", [2, 3])
def test_it_is_its_definition(order, causal):
    """Nexus: the layer equals softmax attention written out, its queries and keys refined by itself."""
    layer, x, rotary = attention(order, rotary=Rotary(6)), hidden(), Rotary(6)
    first_q, first_k, v = layer.projection(x, x)
    unseen = torch.ones(17, 17, dtype=torch.bool).triu(1) if causal else torch.zeros(17, 17, dtype=torch.bool)
    q, k, weights = first_q, first_k, torch.empty(0)
    for _ in range(order):
        turned = [rotary(part, torch.arange(17)[None]) for part in (q, k)]
        weights = (turned[0] @ turned[1].mT / 6**0.5).masked_fill(unseen, -torch.inf).softmax(-1)
        q, k = weights @ first_q, weights @ first_k
    torch.testing.assert_close(layer(x, Layout(causal=causal)), layer.projection.merge(weights @ v), **EXACT)


@pytest.mark.parametrize("mechanism", ["softmax", "window(size=5)", "gated", "gated_deltanet", "gla"])
def test_nothing_leaks_from_the_future_and_it_decodes(mechanism):
    """Nexus: later tokens change no earlier output, bit by bit; decoding, with padding, equals one call."""
    torch.manual_seed(0)
    layer = Attention(build_text(mechanism), Nexus(Sizes(WIDTH, 4, 4, 6, 6), 3), Rotary(6)).double()
    x, keys = hidden(23), torch.rand(2, 23, generator=torch.Generator().manual_seed(3)) < 0.7
    want = layer(x, CAUSAL)
    for cut in (1, 7, 22):
        changed = torch.cat([x[:, :cut], hidden(23, seed=1)[:, cut:]], 1)
        assert torch.equal(layer(changed, CAUSAL)[:, :cut], want[:, :cut])
        assert not torch.equal(layer(changed, CAUSAL)[:, cut:], want[:, cut:])
    for real in (None, keys):
        state, parts, start = layer.start(2, dtype=torch.float64), [], 0
        for size in (9, 1, 1, 12):
            part = None if real is None else real[:, start : start + size]
            out, state = layer.extend(x[:, start : start + size], state, part)
            parts.append(out)
            start += size
        rows = torch.ones(2, 23, dtype=torch.bool) if real is None else real
        whole = layer(x, Layout(causal=True, key_mask=real))
        torch.testing.assert_close(torch.cat(parts, 1)[rows], whole[rows], atol=1e-9, rtol=1e-9)
    order = torch.tensor([1, 0])
    token = hidden(1, seed=4)
    torch.testing.assert_close(layer.extend(token[order], state.select(order))[0], layer.extend(token, state)[0][order])


def test_costs_are_those_of_all_attentions():
    layer, x = attention(3).float(), hidden(31)[:1].float()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x, CAUSAL)
    assert layer.cost(31).flops == counter.get_total_flops()
    _, state = layer.extend(x, layer.start(1))
    assert state.bytes == layer.cost(31).state_bytes == 31 * 4 * layer.projection.cached_numbers


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="order: got 0"):
        Nexus(Sizes(WIDTH, 4, 4, 6, 6), 0)
    with pytest.raises(ValueError, match="kv_heads: got 2"):
        Nexus(Sizes(WIDTH, 4, 2, 6, 6))
    with pytest.raises(ValueError, match="context"):
        attention(2)(hidden(), context=hidden(5))
