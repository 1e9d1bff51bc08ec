"""Necks: counts, levels and limits, exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.featuremap.necks.fpn import level_of

EXACT = {"atol": 1e-9, "rtol": 0}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def pyramid(channels, y, x, batch=2):
    generator, maps = torch.Generator().manual_seed(0), []
    for c in channels:
        maps.append(torch.randn(batch, c, y, x, dtype=torch.float64, generator=generator))
        y, x = -(-y // 2), -(-x // 2)
    return maps


def test_fpn_has_the_sum_of_the_paper():
    """3,344,384 parameters for ResNet-50's maps at d = 256: Σ (c d + 9 d² + 2 d)."""
    neck = regard.neck("fpn")((256, 512, 1024, 2048), out=256)
    assert count(neck) == sum(c * 256 + 9 * 256**2 + 2 * 256 for c in (256, 512, 1024, 2048)) == 3_344_384


@settings(max_examples=5, deadline=None)
@given(y=st.integers(1, 23), x=st.integers(1, 23))
def test_fpn_is_its_equation(y, x):
    """Any rows and columns: laterals, nearest cells added from the coarsest down, 3 × 3; extra maps are every second
    cell."""
    torch.manual_seed(0)
    neck, maps = regard.neck("fpn(extra=1)")((3, 5, 7), out=4).double(), pyramid((3, 5, 7), y, x)
    merged = [lateral(each) for lateral, each in zip(neck.laterals, maps, strict=True)]
    for level in (1, 0):
        rows, columns = (
            torch.arange(n) * m // n for n, m in zip(maps[level].shape[2:], maps[level + 1].shape[2:], strict=True)
        )
        merged[level] = merged[level] + merged[level + 1][:, :, rows][:, :, :, columns]
    want = [smooth(each) for smooth, each in zip(neck.smooth, merged, strict=True)]
    for got, each in zip(neck(maps), [*want, want[-1][:, :, ::2, ::2]], strict=True):
        torch.testing.assert_close(got, each, **EXACT)


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [(224, 224, 4), (112, 112, 3), (111, 112, 2), (448, 112, 4), (448, 448, 5), (447, 448, 4)],
)
def test_boxes_go_to_the_level_of_the_paper(width, height, level):
    """A box of 224 × 224 pixels is read from level 4, one of half the side from level 3."""
    assert level_of(width, height) == level


def test_a_box_without_a_side_is_named():
    with pytest.raises(ValueError, match="width, height: got 0, 3, want above zero"):
        level_of(0, 3)


def test_necks_chain_and_read_through_each_other():
    """A chain gives what its necks give in turn; what a level reads follows from both."""
    torch.manual_seed(0)
    chain, maps = (
        regard.neck("fpn(extra=1) | bifpn(layers=1)")((3, 5, 7), out=4).double().eval(),
        pyramid((3, 5, 7), 9, 14),
    )
    want = maps
    for neck in chain.necks:
        want = neck(want)
    for got, each in zip(chain(maps), want, strict=True):
        torch.testing.assert_close(got, each, **EXACT)
    assert chain.reads == [(0, 1, 2)] * 4
    assert regard.check(chain).holds
    with pytest.raises(TypeError, match="neck: got 'eca', a gate"):
        regard.neck("eca")


def test_the_weights_of_a_node_sum_to_nearly_one():
    """BiFPN's node gives the mean of equal strengths to 1e-4, and nothing of a map whose strength is negative."""
    torch.manual_seed(0)
    node = regard.neck("bifpn(layers=1)")((4, 4), out=4).double().eval().layers[0].down[0]
    one, two = pyramid((4, 4), 5, 7)[0], torch.ones(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        node.strengths.copy_(torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(node([one, two]), node([-one, two]), **EXACT)
