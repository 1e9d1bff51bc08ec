"""Gates of feature maps: equations written out, on maps of any size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.featuremap.gates.ela import SIZES
from regard.featuremap.parts.pools import RANKED, Cosines

EXACT = {"atol": 1e-9, "rtol": 0}


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stirred(text, channels, **more):
    gate = regard.gate(text)(channels, dtype=torch.float64, **more).eval()
    with torch.no_grad():
        for place, parameter in enumerate(gate.parameters()):
            parameter.add_(0.3 * drawn(*parameter.shape, seed=place))
    return gate


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


@pytest.mark.parametrize("entry", regard.entries(kind="gate"), ids=lambda entry: entry.name)
def test_every_gate_is_built_by_its_name(entry):
    """By its name and by the channels alone, in half precision too, and it keeps the shape of a map."""
    gate = regard.gate(entry.name)(32, device="cpu", dtype=torch.bfloat16)
    assert gate(torch.randn(2, 32, 5, 3).bfloat16()).shape == (2, 32, 5, 3)


def test_the_kernels_of_eca_are_those_of_its_formula():
    kernels = {c: regard.gate("eca")(c).mix.kernel for c in (64, 128, 256, 512, 1024, 2048)}
    assert kernels == {64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}


@pytest.mark.parametrize("size", SIZES)
def test_ela_is_its_strips(size):
    """ELA's factors are a convolution and a norm of row and column means."""
    kernel, together, groups = SIZES[size]
    gate, maps = stirred(f"ela(size={size})", 64), drawn(2, 64, 9, 5)
    convolution, norm = gate.mix.convolution, gate.mix.norm
    for name, strip in {"cy": maps.mean(3), "cx": maps.mean(2)}.items():
        mixed = F.conv1d(strip, convolution.weight, padding=kernel // 2, groups=64 // together)
        want = torch.sigmoid(F.group_norm(mixed, groups, norm.weight, norm.bias))
        torch.testing.assert_close(gate.factors(maps)[name].squeeze(), want, **EXACT)


def test_the_waves_of_fcanet_are_orthonormal():
    waves = Cosines(16, "yx").basis.double()
    torch.testing.assert_close(waves @ waves.T, torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)
    assert len(set(RANKED)) == len(RANKED)


def test_the_gradients_of_guided_context_are_numerical_ones():
    gate = stirred("gcg(ratio=4)", 12)
    assert torch.autograd.gradcheck(gate, drawn(1, 12, 2, 3).requires_grad_(), fast_mode=True)


def test_another_large_kernel_is_named():
    with pytest.raises(ValueError, match="kernel: got 9, want one of 7, 11, 23, 35"):
        regard.gate("sdlska(kernel=9)")(3)
