"""Gates of feature maps: what each paper says of its weights, its limits and its factors, exactly."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.featuremap.gates.ela import SIZES
from regard.featuremap.parts.pools import RANKED, Cosines

EXACT = {"atol": 1e-9, "rtol": 0}
RESNET50 = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
"""The channels of each block's output."""


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def weights(module):
    """Those of convolutions and matrices."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stirred(text, channels, **more):
    gate = regard.gate(text)(channels, dtype=torch.float64, **more).eval()
    with torch.no_grad():
        for place, parameter in enumerate(gate.parameters()):
            parameter.add_(0.3 * drawn(*parameter.shape, seed=place))
    return gate


def test_se_adds_what_the_paper_says(record_property):
    """SE-ResNet-50 has about 2.5 million parameters more than ResNet-50: 2 c²/16 in each block."""
    added = sum(count(regard.gate("se(bias=False)")(c)) for c in RESNET50)
    record_property("parameters", f"{added:,}")
    assert added == sum(2 * c * c // 16 for c in RESNET50)
    assert round(added / 1e6, 1) == 2.5


def test_eca_adds_what_the_paper_says(record_property):
    """ECA adds 80 weights to ResNet-50 with k = 5 or the released kernels, 86 by its formula; far below 1% of SE's."""
    kernels = {c: regard.gate("eca")(c).mix.kernel for c in (64, 128, 256, 512, 1024, 2048)}
    assert kernels == {64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}
    formula = sum(count(regard.gate("eca")(c)) for c in RESNET50)
    five = sum(count(regard.gate("eca(kernel=5)")(c)) for c in RESNET50)
    released = dict(zip((256, 512, 1024, 2048), (3, 5, 5, 7), strict=True))
    of_release = sum(count(regard.gate(f"eca(kernel={released[c]})")(c)) for c in RESNET50)
    record_property("weights", f"{formula}, {five}, {of_release}")
    assert (formula, five, of_release) == (86, 80, 80)
    assert formula < 0.01 * sum(count(regard.gate("se")(c)) for c in RESNET50)


def test_triplet_adds_what_the_paper_says():
    """Each block adds 3 × 2 × 49 convolution weights and three norms of two parameters, whatever its channels."""
    for channels in (3, 64, 512):
        gate = regard.gate("triplet")(channels)
        assert (weights(gate), count(gate)) == (294, 300)


@settings(max_examples=5, deadline=None)
@given(c=st.integers(1, 11), y=st.integers(1, 13), x=st.integers(1, 17))
def test_triplet_is_three_turned_maps(c, y, x):
    """The one pass equals turning the map for each of the three branches, any size."""
    gate, maps = stirred("triplet(kernel=3)", c), drawn(2, c, y, x)
    out = torch.zeros_like(maps)
    for order, branch in (((0, 2, 1, 3), 0), ((0, 3, 1, 2), 1), ((0, 1, 2, 3), 2)):
        turned = maps.permute(order)
        pooled = torch.cat((turned.max(1, keepdim=True)[0], turned.mean(1, keepdim=True)), 1)
        factor = torch.sigmoid(gate.mix.norms[branch](gate.mix.convolutions[branch](pooled)))
        out += (turned * factor).permute([order.index(axis) for axis in range(4)])
    torch.testing.assert_close(gate(maps), out / 3, **EXACT)


def test_ela_is_its_strips_and_counts():
    """ELA's factors are a convolution and a norm of row and column means; c k weights in T and B, 8 c k in S and L."""
    for size, (kernel, together, groups) in SIZES.items():
        for channels in (64, 128, 512):
            gate = regard.gate(f"ela(size={size})")(channels)
            assert weights(gate) == channels * kernel * together
        gate, maps = stirred(f"ela(size={size})", 64), drawn(2, 64, 9, 5)
        convolution, norm = gate.mix.convolution, gate.mix.norm
        strips = {"cy": maps.mean(3), "cx": maps.mean(2)}
        for name, strip in strips.items():
            mixed = F.conv1d(strip, convolution.weight, padding=kernel // 2, groups=64 // together)
            want = torch.sigmoid(F.group_norm(mixed, groups, norm.weight, norm.bias))
            torch.testing.assert_close(gate.factors(maps)[name].squeeze(), want, **EXACT)
        torch.testing.assert_close(gate(maps)[:1], gate(maps[:1]), **EXACT)


@settings(max_examples=5, deadline=None)
@given(y=st.integers(1, 13), x=st.integers(1, 17), size=st.sampled_from([7, 14, 28]))
def test_fcanet_of_the_lowest_frequency_is_se(y, x, size):
    """With one frequency, (0, 0), FcaNet is SE of S times the mean of the map pooled to S × S; counts are SE's."""
    gate, se = (
        stirred(f"fcanet(frequencies=1, size={size}, ratio=2)", 6),
        regard.gate("se(ratio=2, bias=False)")(6).double(),
    )
    se.load_state_dict(gate.state_dict())
    maps = drawn(2, 6, y, x)
    mean = F.adaptive_avg_pool2d(maps, size).mean((2, 3))[:, None]
    want = torch.sigmoid(se.mix([size * mean])[0])[:, 0, :, None, None]
    torch.testing.assert_close(gate.factors(maps)["c"], want, atol=1e-6, rtol=0)  # the basis is float32


def test_fcanet_counts_and_basis():
    """As many parameters as SE at every width; the sixteen waves of a 7 × 7 map are orthonormal."""
    for channels in (64, 256, 512, 2048):
        assert count(regard.gate("fcanet")(channels)) == count(regard.gate("se(bias=False)")(channels))
    waves = Cosines(16, "yx").basis.double()
    torch.testing.assert_close(waves @ waves.T, torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)
    assert len(set(RANKED)) == len(RANKED)


def test_ulsam_counts_and_sums():
    """128 convolution weights at 64 channels in 4 subspaces, 332 parameters in all; each attention sums to one."""
    gate = regard.gate("ulsam")(64)
    assert (weights(gate), count(gate)) == (128, 332)
    attention = stirred("ulsam", 64).factors(drawn(2, 64, 11, 7))["cyx"]
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 64, dtype=torch.float64), atol=1e-12, rtol=0)
    assert all(torch.equal(attention[:, 16 * g], attention[:, 16 * g + 15]) for g in range(4))


def test_pkcam_counts_and_gradients(record_property):
    """The gates of a ResNet-20 hold fewer than 300 weights; earlier stages' descriptors have gradients."""
    total = 0
    for stage, channels in enumerate((16, 32, 64)):
        earlier = tuple(16 * 2 ** max(s - 1, 0) for s in range(stage + 1))  # the stem's, then one a stage
        total += count(regard.gate("pkcam")(channels))
        total += 2 * count(regard.gate("pkcam")(channels, earlier=earlier))
    record_property("weights", total)
    assert total < 300
    gate, past = stirred("pkcam", 8, earlier=(2, 4)), [drawn(3, 2), drawn(3, 4)]
    leaves = [descriptor.requires_grad_() for descriptor in past]
    with torch.no_grad():
        gate.stages.weight.abs_()
    for gradient in torch.autograd.grad(gate(drawn(3, 8, 5, 7), past).square().sum(), leaves):
        assert gradient.abs().max() > 0


def test_high_order_counts_and_powers():
    """The counts of the authors' modules at 512 channels; a term of order r of c x is c^r times that of x."""
    counts = [count(regard.gate(f"high_order(order={order})")(512)) for order in (1, 2, 4, 6)]
    assert counts == [131_072, 327_680, 917_504, 1_769_472]
    mix, maps = stirred("high_order(order=4)", 16).mix, drawn(2, 16, 3, 5)
    for order, (one, more) in enumerate(zip(mix.products(maps), mix.products(1.7 * maps), strict=True), 1):
        torch.testing.assert_close(more, 1.7**order * one, **EXACT)


def test_guided_context_is_a_mean_under_attention():
    """GCG's context is a mean: its weights over the cells sum to one, and of equal cells it is any of them."""
    gate = stirred("gcg(ratio=4)", 12)
    torch.testing.assert_close(gate.context.attention(drawn(2, 12, 5, 7)).sum(1), torch.ones(2).double(), **EXACT)
    cell = drawn(2, 12, 1, 1)
    torch.testing.assert_close(gate.context(cell.expand(2, 12, 5, 7))[:, 0], cell.flatten(1), **EXACT)
    assert torch.autograd.gradcheck(gate, drawn(1, 12, 2, 3).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("entry", regard.entries(kind="gate"), ids=lambda entry: entry.name)
def test_every_gate_is_built_by_its_name(entry):
    """By its name and by the channels alone, in half precision too, and it keeps the shape of a map."""
    gate = regard.gate(entry.name)(32, device="cpu", dtype=torch.bfloat16)
    assert gate(torch.randn(2, 32, 5, 3).bfloat16()).shape == (2, 32, 5, 3)


def test_the_large_kernel_spans_a_cross():
    """With the selection held, what a factor depends on is 35 × 5 and 5 × 35 cells around it, exactly, no square."""
    gate = stirred("sdlska(kernel=35)", 3)
    maps = drawn(1, 3, 41, 43).requires_grad_()
    near = gate.square(maps)
    held = gate.mix(near + gate.row(near) + gate.column(near))
    (gradient,) = torch.autograd.grad(held[0, :, 20, 21].sum(), maps)
    seen = gradient[0].abs().sum(0) > 0
    rows, columns = (torch.arange(41) - 20).abs()[:, None], (torch.arange(43) - 21).abs()
    cross = ((rows <= 17) & (columns <= 2)) | ((rows <= 2) & (columns <= 17))
    assert torch.equal(seen, cross)
    with pytest.raises(ValueError, match="kernel: got 9, want one of 7, 11, 23, 35"):
        regard.gate("sdlska(kernel=9)")(3)
