"""Codecs by numbers worked out by hand, and what a model keeps of its matrices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import regard
from regard.analysis.planted import planted_model
from regard.codecs import Integers, PyramidVector
from regard.codecs.half import from_half, to_half
from regard.codecs.named import codec_of
from regard.codecs.pyramid_vector import beta_quantiles, index_of, nearest, point_of, points
from regard.codecs.weighed import encode_weighed
from regard.laws.small import llama, tokens


def pyramid(n, k):
    """All points, by definition."""
    every = itertools.product(range(-k, k + 1), repeat=n)
    return torch.tensor([y for y in every if sum(map(abs, y)) == k])


@pytest.mark.parametrize(("n", "k", "count"), [(1, 5, 2), (2, 1, 4), (2, 7, 28), (3, 2, 18), (4, 3, 88), (5, 0, 1)])
def test_points_are_counted_and_numbered_one_by_one(n, k, count):
    every = pyramid(n, k)
    assert points(n, k) == len(every) == count
    numbers = index_of(every)
    assert sorted(numbers.tolist()) == list(range(count))
    assert torch.equal(point_of(numbers, n, k), every)


def test_their_order_by_hand():
    found = point_of(torch.arange(8), 2, 2).tolist()
    assert found == [[0, 2], [0, -2], [1, 1], [1, -1], [-1, 1], [-1, -1], [2, 0], [-2, 0]]


def test_large_pyramids_are_numbered_too():
    draw = torch.Generator().manual_seed(0)
    y = nearest(torch.randn(29, 16, generator=draw), 24)
    assert (y.abs().sum(-1) == 24).all()
    assert points(16, 24) < 1 << 62
    assert torch.equal(point_of(index_of(y), 16, 24), y)


def test_the_nearest_point_by_all_of_them():
    draw = torch.Generator().manual_seed(1)
    x, every = torch.randn(41, 3, generator=draw), pyramid(3, 4)
    angles = torch.nn.functional.cosine_similarity(nearest(x, 4).float(), x)
    best = (torch.nn.functional.normalize(every.float(), dim=-1) @ torch.nn.functional.normalize(x, dim=-1).T).amax(0)
    assert (angles > best - 0.03).all()
    assert ((best - angles) < 1e-6).float().mean() > 0.8
    assert nearest(torch.tensor([[0.0, -2.0, 0.0], [0.0, 0.0, 0.0]]), 3).tolist() == [[0, -3, 0], [3, 0, 0]]


def test_quantiles_of_amplitudes():
    at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(beta_quantiles(at, 1, 1), at, atol=1e-3, rtol=0)  # uniform
    torch.testing.assert_close(beta_quantiles(at, 2, 1), at.sqrt(), atol=1e-3, rtol=0)  # F(x) = x²
    draw = torch.randn(20_000, 24, generator=torch.Generator().manual_seed(2))
    shares = draw[:, :8].norm(dim=1) / draw.norm(dim=1)
    borders = PyramidVector(group=8, levels=4).quantiles(24)[1]
    counted = torch.bucketize(shares, borders.float()).bincount() / 20_000
    torch.testing.assert_close(counted, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_a_vector_on_the_lattice_is_told_exactly():
    codec = PyramidVector(group=5, pulses=6, mix=False)
    y = torch.tensor([[3.0, -2.0, 0.0, 1.0, 0.0], [0.0, 0.0, -6.0, 0.0, 0.0]])
    x = 4 * y / y.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(codec.through(x), x)
    assert codec.bits(5) == pytest.approx((math.log2(points(5, 6)) + 15) / 5)


def test_amplitudes_of_two_groups_by_hand():
    """r² ~ Beta(½, ½), so r = sin(π F / 2): a cell below sin(π/4), told as sin(π/8), and one above, as sin(3π/8)."""
    codec = PyramidVector(group=1, pulses=1, levels=2, mix=False)
    codes = codec.encode(torch.tensor([[3.0, -4.0]]))  # shares of the length 5: 0.6 and 0.8
    assert codes["amplitudes"].tolist() == [[0, 1]]
    expected = 5 * torch.tensor([[math.sin(math.pi / 8), -math.sin(3 * math.pi / 8)]])
    torch.testing.assert_close(codec.decode(codes, 2), expected, atol=5e-3, rtol=0)  # the quantiles are of a grid


def test_mixing_is_undone_and_keeps_lengths():
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(3))
    codec = PyramidVector(group=8)
    mixed = codec.mixed(x)
    torch.testing.assert_close(mixed.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(codec.mixed(mixed, back=True), x)
    spike = torch.eye(24)[:1]
    assert codec.mixed(spike).abs().max() == pytest.approx(8**-0.5)


def test_rounding_by_hand():
    x = torch.tensor([[0.7, -0.3, 0.1, 0.06]])
    codes = Integers(width=4).encode(x)
    assert codes["numbers"].tolist() == [[14, 4, 8, 8]]
    torch.testing.assert_close(from_half(codes["scales"]), torch.tensor([[0.1]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(Integers(width=4).through(x), torch.tensor([[0.7, -0.3, 0.1, 0.1]]), atol=1e-3, rtol=0)
    assert Integers(width=8).bits(64) == pytest.approx(math.log2(255) + 15 / 64)
    assert from_half(to_half(torch.tensor([1e6, 0.0, 1.5]))).tolist() == [65504.0, 0.0, 1.5]


@torch.no_grad()
def test_a_model_with_coded_matrices():
    model, ids = llama(2), tokens(2, 11)
    whole = model(input_ids=ids).logits
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    codec = Integers(width=8)
    with regard.quantise(model, codec, names=["self_attn"]) as quantised:
        for name, weight in model.state_dict().items():
            want = codec.through(weights[name]) if "self_attn" in name else weights[name]
            assert torch.equal(weight, want), name
        assert 8 <= quantised.bits <= 10
        assert quantised.bytes == pytest.approx(
            quantised.bits * sum(w.numel() for n, w in weights.items() if "self_attn" in n) / 8, rel=1e-3
        )
        assert 0 < (model(input_ids=ids).logits - whole).abs().max() < 0.1
        with pytest.raises(RuntimeError, match="quantised already"):
            quantised.install()
    assert torch.equal(model(input_ids=ids).logits, whole)
    with pytest.raises(ValueError, match="names: got"):
        regard.quantise(model, codec, names=["attn.w"])


def test_names_and_what_cannot_be():
    assert codec_of("integers(width=4)") == Integers(width=4)
    assert codec_of("pvq", pulses=5) == PyramidVector(pulses=5)
    for given, error, message in (
        ("pqv", LookupError, "codec: got 'pqv', want one of integers, pvq"),
        (4, TypeError, "want the name of a codec"),
        ("integers(width=1)", ValueError, "2 to 16 bits"),
        ("integers(bits=4)", TypeError, "bits"),
        ("pvq(group=64, pulses=64)", ValueError, "fewer than 2\\^62 points"),
        ("pvq(levels=0)", ValueError, "at least 1 each"),
    ):
        with pytest.raises(error, match=message):
            codec_of(given)
    for codec in (PyramidVector(), Integers(group=5)):
        with pytest.raises(ValueError, match="a divisor of 23"):
            codec.through(torch.ones(23))


def correlated(n, d, seed=0):
    """Inputs ``(n, d)`` of which a few directions are most."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=draw) @ torch.randn(3, d, generator=draw) + 0.2 * torch.randn(
        n, d, generator=draw
    )


@pytest.mark.parametrize("mix", [False, True])
def test_weighed_errors_are_smaller_where_inputs_are(mix):
    codec = PyramidVector(group=8, pulses=6, levels=8, mix=mix)
    x, z = torch.randn(13, 24, generator=torch.Generator().manual_seed(1)), correlated(200, 24)
    plain = codec.through(x)
    weighed = codec.decode(encode_weighed(codec, x, z.T @ z), 24)
    losses = [((z @ (got - x).T).square().sum() / (z @ x.T).square().sum()).item() for got in (plain, weighed)]
    assert losses[1] < 0.6 * losses[0]


def test_with_inputs_alike_in_all_directions_nothing_is_made_up_for():
    codec = PyramidVector(group=8, pulses=6, levels=8)
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(2))
    codes, weighed = codec.encode(x), encode_weighed(codec, x, 5 * torch.eye(24))
    assert torch.equal(codes["points"], weighed["points"])
    assert float((codes["amplitudes"] - weighed["amplitudes"]).abs().max()) <= 1  # of rounded and unrounded norms
    one = PyramidVector(group=7, pulses=9)
    assert set(encode_weighed(one, x[:, :7], torch.eye(7))) == {"points", "scales"}
    with pytest.raises(ValueError, match="hessian: got shape"):
        encode_weighed(codec, x, torch.eye(23))


def test_a_models_errors_are_weighed_by_what_its_layers_are_given():
    model = planted_model(())
    texts = [torch.arange(3, 24), torch.arange(5, 27)]
    codec, names = PyramidVector(group=6, pulses=4, levels=4), ["layers.0.mlp.gate_proj"]
    matrix = model.model.layers[0].mlp.gate_proj.weight
    seen = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda m, i: seen.append(i[0].flatten(0, 1)))
    with torch.no_grad():
        for ids in texts:
            model(ids[None])
    hook.remove()
    own, z = matrix.detach().clone(), torch.cat(seen)
    want = codec.decode(encode_weighed(codec, own, (z.T @ z).float()), own.shape[1])
    with regard.quantise(model, codec, names=names, texts=texts):
        torch.testing.assert_close(matrix.detach().float(), want, atol=1e-4, rtol=1e-3)
    assert torch.equal(matrix, own)
    with pytest.raises(ValueError, match="texts: got some, for Integers"):
        regard.quantise(model, "integers(width=8)", texts=texts)
    with pytest.raises(ValueError, match="texts: got none that"):
        regard.quantise(model, codec, names=names, texts=[])
