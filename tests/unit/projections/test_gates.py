"""Gates at five places: their equation, their limits, parameters, FLOPs and decoding."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.analysis.implicit_attention import reproduced
from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.gates import Gates

CAUSAL, EXACT, WIDTH = Layout(causal=True), {"atol": 1e-12, "rtol": 0}, 24
PLACES = ("query", "key", "value", "heads", "output")


def made(at, each=True):
    torch.manual_seed(0)
    return Attention(regard.build("softmax"), Gates(Sizes(WIDTH, 4, 2, 5, 7), at, each)).double()


def hidden(n=17):
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("at", PLACES)
def test_a_gate_is_its_equation(at, each):
    """Whichever place, and for coordinates or heads: the layer equals the equation written out, head by head."""
    layer, x = made(at, each), hidden()
    p = layer.projection
    q, k, v = p.q(x), p.k(x), p.v(x)
    count, size = {"query": (4, 5), "key": (2, 5), "value": (2, 7), "heads": (4, 7), "output": (1, WIDTH)}[at]
    gate = torch.sigmoid(x @ p.gate.weight.T)
    gate = gate if each else gate.repeat_interleave(size, -1)
    assert gate.shape[-1] == count * size
    q, k, v = (part * gate if at == name else part for name, part in (("query", q), ("key", k), ("value", v)))
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part, heads in ((q, 4), (k, 2), (v, 2)))
    k, v = (part.repeat_interleave(2, 1) for part in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    out = p.out(out * gate if at == "heads" else out)
    torch.testing.assert_close(layer(x, CAUSAL), out * gate if at == "output" else out, **EXACT)
    torch.testing.assert_close(reproduced(layer, x), layer(x, CAUSAL), **EXACT)


@pytest.mark.parametrize("at", PLACES)
def test_the_gate_of_a_token_is_its_own(at):
    """Across sequences keys and values are gated by the tokens attended to, all else by those that ask."""
    layer, x, context = made(at), hidden(5), hidden(11) + 1
    p = layer.projection
    gates = dict.fromkeys(("query", "heads", "output"), x) | dict.fromkeys(("key", "value"), context)
    opened, plain = p.opening(gates[at]), Grouped(Sizes(WIDTH, 4, 2, 5, 7)).double()
    plain.load_state_dict({name: w for name, w in p.state_dict().items() if not name.startswith("gate")})
    q, k, v = (
        part * opened if at == name else part
        for part, name in zip(plain(x, context), ("query", "key", "value"), strict=True)
    )
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    want = plain.merge(out * opened if at == "heads" else out)
    want = want * opened[:, 0] if at == "output" else want
    torch.testing.assert_close(layer(x, Layout(), context), want, **EXACT)


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("at", PLACES)
def test_sizes_and_decoding(at, each):
    """Parameters and FLOPs by formula; a layer decodes in any chunks what it computes at once."""
    layer, x = made(at, each), hidden()
    assert layer.projection.parameter_count == sum(p.numel() for p in layer.projection.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        want = layer(x, CAUSAL)
    assert layer.cost(17, batch=2, itemsize=8).flops == counter.get_total_flops()
    state, parts = layer.start(2, dtype=torch.float64), []
    for part in x.split([9, 1, 7], dim=1):
        out, state = layer.extend(part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), want, atol=1e-9, rtol=1e-9)


def test_other_places_are_refused():
    with pytest.raises(ValueError, match="at: got 'scores', want query, key, value, heads, output"):
        Gates(Sizes(WIDTH, 4, 2, 5, 7), "scores")  # pyright: ignore
