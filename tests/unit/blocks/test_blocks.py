"""The parts around a mechanism: projections, positions, signals, the short convolution, hosting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.blocks.convolution import ShortConvolution
from regard.blocks.output import HeadNorm
from regard.blocks.signals import Signals
from regard.core.layer import Gate, Norm, Shift
from regard.core.layout import Layout
from regard.core.mechanism import LayerSpec, Signal
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.gates import Gates
from regard.projections.rotary import Rotary
from regard.projections.selective import MultiValue, Selective, as_hosted

CLOSE = {"atol": 1e-10, "rtol": 1e-10}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def hosted(host: LayerSpec, kv_heads: int = 2) -> Attention:
    torch.manual_seed(3)
    mechanism = regard.build("softmax")
    mechanism.layer = host
    layer = Attention(mechanism, as_hosted(host.projection, Sizes(13, 4, kv_heads, 6, 5)), Rotary(6)).double()
    for weight in [*layer.output.parameters(), *(layer.shift.parameters() if layer.shift else [])]:
        torch.nn.init.normal_(weight)
    return layer


def test_grouped_projection_is_four_matrices_and_counts_them():
    projection = Grouped(Sizes(13, 6, 3, 7, 5)).double()
    x, context = normal(2, 11, 13), normal(2, 17, 13)
    q, k, v = projection(x, context)
    torch.testing.assert_close(q[:, 4], x @ projection.q.weight[28:35].T, **CLOSE)
    torch.testing.assert_close(k[:, 1], context @ projection.k.weight[7:14].T, **CLOSE)
    assert v.shape == (2, 3, 17, 5)
    assert projection.parameter_count == sum(p.numel() for p in projection.parameters())
    assert projection.cached_numbers == k[0, :, 0].numel() + v[0, :, 0].numel()
    with pytest.raises(ValueError, match="kv_heads: got 4, want a divisor of the 6 heads"):
        Grouped(Sizes(13, 6, 4, 7, 5))


@pytest.mark.parametrize("made", [MultiValue, Selective])
def test_projections_that_share_queries_and_keys_count_their_parameters(made):
    projection = made(Sizes(13, 6, 3, 7, 5))
    assert projection.parameter_count == sum(p.numel() for p in projection.parameters())
    q, k, v = projection(normal(2, 11, 13).float(), normal(2, 17, 13).float())
    assert (q.shape[1], k.shape[1], v.shape[1]) == projection.counts == (3, 3, 6)
    with pytest.raises(ValueError, match="kv_heads: got 4, want a divisor of the 6 heads"):
        made(Sizes(13, 6, 4, 7, 5))


SHIFTED, BLENDED = 2 * 3 * 2 * 13, 13 * 4
"""Weights of two matrices of rank 2 for three readers of 13 channels, and of one number for each head."""


@pytest.mark.parametrize(
    ("host", "weights"), [(LayerSpec(shift=Shift()), 0), (LayerSpec(shift=Shift(2), blend=True), SHIFTED + BLENDED)]
)
def test_a_layer_counts_the_products_that_it_multiplies(host, weights):
    layer, plain = hosted(host), hosted(LayerSpec())
    with FlopCounterMode(display=False) as counter:
        layer(normal(2, 11, 13), Layout())
    found, least = (one.cost(11, batch=2, causal=False).flops for one in (layer, plain))
    assert found == counter.get_total_flops() == least + 2 * 22 * weights


def test_rotary_products_depend_on_distances_alone():
    rotary, q, k = Rotary(6, base=100), normal(1, 1, 1, 7), normal(1, 1, 1, 7)

    def product(i: int, j: int) -> torch.Tensor:
        return (rotary(q, torch.tensor([[i]])) * rotary(k, torch.tensor([[j]]))).sum()

    torch.testing.assert_close(product(5, 3), product(105, 103), **CLOSE)
    assert not torch.isclose(product(5, 3), product(5, 2))
    assert torch.equal(rotary(q, torch.tensor([[0]])), q)
    angle = torch.tensor(2 * 100 ** (-1 / 3), dtype=torch.float64)
    turned = rotary(q, torch.tensor([[2]]))[0, 0, 0]
    torch.testing.assert_close(turned[1], q[0, 0, 0, 1] * angle.cos() - q[0, 0, 0, 4] * angle.sin(), **CLOSE)
    with pytest.raises(ValueError, match="dim: got 5"):
        Rotary(5)


SPECS = {
    "gate": Signal("", "query", low=0, high=1, start=0.9),
    "log_decay": Signal("", "key", "kv_heads", dim="key", high=0, start=-0.01),
    "step": Signal("", "key", "shared", low=0.5, start=0.7),
    "shift": Signal("", "key", "heads", dim=3, start=-2.0),
    "free": Signal("", "key"),
    "steady": Signal("", "query", start=0.3, steady=True),
}


def test_signals_have_their_shapes_ranges_and_starts():
    signals = Signals(SPECS, 13, 4, 2, 6, 5).double()
    found = signals(normal(2, 11, 13) * 5, normal(2, 17, 13) * 5)
    shapes = {
        "gate": (2, 4, 11),
        "log_decay": (2, 2, 17, 6),
        "step": (2, 1, 17),
        "shift": (2, 4, 17, 3),
        "free": (2, 4, 17),
        "steady": (2, 4, 11),
    }
    assert {name: tuple(signal.shape) for name, signal in found.items()} == shapes
    for name, spec in SPECS.items():
        assert spec.low <= found[name].min() <= found[name].max() <= spec.high
    torch.testing.assert_close(found["steady"], torch.full_like(found["steady"], 0.3))
    at_zero = signals(torch.zeros(1, 1, 13).double(), torch.zeros(1, 1, 13).double())
    for name, spec in SPECS.items():
        if spec.start is not None:
            torch.testing.assert_close(at_zero[name], torch.full_like(at_zero[name], spec.start))
    with pytest.raises(ValueError, match="start: got 2"):
        Signals({"bad": Signal("", low=0, high=1, start=2)}, 13, 4, 2, 6, 5)


def test_the_short_convolution_sees_the_last_real_tokens():
    convolution, x = ShortConvolution(5, 3).double(), normal(2, 7, 5)
    out = convolution(x, Layout())
    w = convolution.weight
    torch.testing.assert_close(out[:, 4], x[:, 4] * w[0] + x[:, 3] * w[1] + x[:, 2] * w[2], **CLOSE)
    torch.testing.assert_close(out[:, 0], x[:, 0] * w[0], **CLOSE)
    keys = torch.tensor([[True, False, True, True, False, False, True], [False, False, True, True, True, True, True]])
    padded = convolution(x, Layout(key_mask=keys))
    for row in range(2):
        alone = convolution(x[row, keys[row]][None], Layout())
        torch.testing.assert_close(padded[row, keys[row]], alone[0], **CLOSE)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1]]).expand(2, -1)
    packed = convolution(x, Layout(segments=segments))
    torch.testing.assert_close(packed[:, 4:], convolution(x[:, 4:], Layout()), **CLOSE)


HOSTS = [
    LayerSpec(),
    LayerSpec(rotary=False),
    LayerSpec(convolution=4, activation="silu", unit=True),
    LayerSpec(convolution=2, norm=True, gate="silu"),
    LayerSpec(norm=True, gate="sigmoid", unit=True),
    LayerSpec(convolution=3, bias=True, skip=True, norm=Norm("group"), gate=Gate("silu", before_norm=True)),
    LayerSpec(convolution=3, activation="silu", norm=Norm("all"), projection="multi_value"),
    LayerSpec(convolution=3, activation="silu", skip=True, gate="silu", projection="selective"),
    LayerSpec(shift=Shift(), norm=Norm(centred=True, each=True), bonus=True, gate=Gate(None, rank=3, inner="sigmoid")),
    LayerSpec(
        shift=Shift(7), norm=Norm("all", centred=True), gate=Gate("sigmoid", rank="value", inner="tanh", bias=True)
    ),
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_hosted_mechanism_is_extended_and_padded_like_one_call(host):
    layer, x = hosted(host), normal(2, 19, 13)
    generator = torch.Generator().manual_seed(1)
    keys = torch.rand(2, 19, generator=generator) < 0.7
    for mask in (None, keys):
        want, state, parts = layer(x, Layout(causal=True, key_mask=mask)), layer.start(2, dtype=torch.float64), []
        for part in torch.arange(19).split([5, 1, 1, 9, 3]):
            out, state = layer.extend(x[:, part], state, None if mask is None else mask[:, part])
            parts.append(out)
        real = torch.ones(2, 19, dtype=torch.bool) if mask is None else mask
        torch.testing.assert_close(torch.cat(parts, 1)[real], want[real], **CLOSE)
    for row in range(2):
        alone = layer(x[row, keys[row]][None], Layout(causal=True))
        torch.testing.assert_close(want[row, keys[row]], alone[0], **CLOSE)
    order = torch.tensor([1, 0])
    swapped, _ = layer.extend(x[order, :1], state.select(order))
    torch.testing.assert_close(swapped[order], layer.extend(x[:, :1], state)[0], **CLOSE)


@pytest.mark.parametrize("host", HOSTS)
def test_every_word_of_the_host_does_something(host):
    x = normal(2, 11, 13)
    plain = hosted(LayerSpec(rotary=False))(x, Layout(causal=True))
    if host != LayerSpec(rotary=False):
        assert not torch.allclose(hosted(host)(x, Layout(causal=True)), plain)


def test_gate_norm_and_unit_are_what_they_say():
    layer, x = hosted(replace(LayerSpec(rotary=False), norm=True, gate="sigmoid", unit=True)), normal(1, 7, 13)
    q, k, v = layer.projection(x, x)
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    out = regard.build("softmax")(q, k, v, Layout(causal=True))
    out = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.output.norm.weight
    gate = torch.sigmoid(x @ layer.output.gate.weight.T).unflatten(2, (4, 5)).transpose(1, 2)
    torch.testing.assert_close(layer(x, Layout(causal=True)), layer.projection.merge(out * gate), **CLOSE)


def test_a_gate_of_the_outputs_is_one_number_for_what_each_head_says():
    layer = hosted(LayerSpec(rotary=False, gate=Gate("sigmoid", of="output", bias=True)))
    x = normal(1, 7, 13)
    out = regard.build("softmax")(*layer.projection(x, x), Layout(causal=True))
    gate = torch.sigmoid((out * layer.output.gate.weight[0]).sum(-1, keepdim=True) + layer.output.gate.bias)
    torch.testing.assert_close(layer(x, Layout(causal=True)), layer.projection.merge(out * gate), **CLOSE)


def test_cross_attention_has_no_positions_and_no_convolution():
    layer, x, context = hosted(LayerSpec()), normal(2, 7, 13), normal(2, 11, 13)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x, Layout(), context), layer(x, Layout(), context[:, order]), **CLOSE)
    with pytest.raises(ValueError, match="context: got another sequence"):
        hosted(LayerSpec(convolution=3))(x, Layout(), context)


def test_a_block_adds_what_its_parts_make():
    torch.manual_seed(0)
    block = Block(hosted(LayerSpec()), 13, 17, cross=hosted(LayerSpec(rotary=False))).double()
    x, context = normal(2, 7, 13), normal(2, 11, 13)
    h = x + block.attention(block.norms[0](x), Layout(causal=True))
    h = h + block.cross(block.norms[2](h), Layout(), context)
    h = h + block.network(block.norms[1](h))
    torch.testing.assert_close(block(x, Layout(causal=True), context), h, **CLOSE)


def test_what_a_host_cannot_have_is_refused():
    for wrong, words in [
        (lambda: LayerSpec(bias=True), "bias: got True, want False where nothing is convolved"),
        (lambda: LayerSpec(shift=Shift(), convolution=4), "shift: got"),
        (lambda: LayerSpec(gate=Gate("silu", before_norm=True)), r"gate\.before_norm: got True"),
        (
            lambda: hosted(LayerSpec(shift=Shift()))(normal(1, 3, 13), Layout(), normal(1, 5, 13)),
            "context: got another",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            wrong()
    mechanism = regard.build("softmax")
    mechanism.layer = LayerSpec(projection="selective")
    with pytest.raises(ValueError, match="projection: got Grouped, want Selective, as Softmax has it"):
        Attention(mechanism, Grouped(Sizes(13, 4, 2, 6, 5)))
    mechanism.layer = LayerSpec(shift=Shift())
    with pytest.raises(ValueError, match="projection: got MultiValue, want Grouped: the token shift"):
        Attention(mechanism, MultiValue(Sizes(13, 4, 2, 6, 5)))


def test_a_norm_scales_by_the_channels_that_it_names():
    """Two heads a group of four; every set of channels has a mean square of its own."""
    x = normal(2, 4, 3, 5)
    for over, parts in (("head", 4), ("group", 2), ("all", 1)):
        norm = HeadNorm(Norm(over, each=True, eps=0.0), 4, 2, 5).double()
        torch.nn.init.normal_(norm.weight)
        sets = x.transpose(1, 2).reshape(2, 3, parts, -1)
        want = (sets / sets.square().mean(-1, keepdim=True).sqrt()).view(2, 3, 4, 5).transpose(1, 2)
        torch.testing.assert_close(norm(x), want * norm.weight[:, None], **CLOSE)
        torch.testing.assert_close(norm.factors(x) * x, norm(x), **CLOSE)


def test_a_mechanism_that_does_not_group_is_refused_by_name():
    mechanism = regard.build("softmax")
    mechanism.traits = replace(mechanism.traits, grouped=False)
    with pytest.raises(ValueError, match="kv_heads: got 2, want the 4 heads: Softmax does not group"):
        Attention(mechanism, Grouped(Sizes(13, 4, 2, 6, 5)))


def test_a_gate_of_each_element_is_the_projection_that_gates_behind_attention():
    x, layout = normal(2, 11, 12), Layout(causal=True)
    own = Attention(regard.build("gated", each=True), Grouped(Sizes(12, 4, 2, 3, 5))).double()
    other = Attention(regard.build("softmax"), Gates(Sizes(12, 4, 2, 3, 5), "heads")).double()
    weights = {name: value for name, value in own.state_dict().items() if not name.startswith("output.")}
    other.load_state_dict(weights | {"projection.gate.weight": own.state_dict()["output.gate.weight"]})
    torch.testing.assert_close(own(x, layout), other(x, layout), **CLOSE)


def test_keys_and_values_are_blended_by_hand():
    """Shares of one half: each key and value is the mean with that before it, the first half of itself."""
    layer = hosted(LayerSpec(rotary=False, blend=True))
    with torch.no_grad():
        layer.blend.weight.zero_()
    plain = hosted(LayerSpec(rotary=False))
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = normal(2, 5, 13)
    (_, k, v, _), (_, k_plain, v_plain, _) = (each.inputs(x, Layout(causal=True)) for each in (layer, plain))
    for got, alone in ((k, k_plain), (v, v_plain)):
        past = torch.nn.functional.pad(alone[:, :, :-1], (0, 0, 1, 0))
        torch.testing.assert_close(got, (alone + past) / 2, **CLOSE)


def test_a_later_layer_wants_the_values_of_the_first():
    layer = Attention(regard.build("rwkv7", heads=2, head_dim=3), Grouped(Sizes(6, 2, 2, 3, 3)), later=True)
    with pytest.raises(TypeError, match="values"):
        layer(torch.randn(1, 3, 6), Layout(causal=True))
