"""Necks: equations written out, chains, and what moves no tap, on maps of any size."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.featuremap.deform import deform_conv2d
from regard.featuremap.necks.fpn import level_of
from regard.featuremap.necks.gold_yolo import Injection
from regard.featuremap.resize import resize
from regard.networks.vision.laplacian import dilated, ellipse

EXACT = {"atol": 1e-9, "rtol": 0}


def pyramid(channels, y, x, batch=2):
    generator, maps = torch.Generator().manual_seed(0), []
    for c in channels:
        maps.append(torch.randn(batch, c, y, x, dtype=torch.float64, generator=generator))
        y, x = -(-y // 2), -(-x // 2)
    return maps


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


def by_hand(x, offset, weight, mask, stride, padding, dilation):
    """A deformable convolution tap by tap, each read between four cells, zero outside."""
    b, _, rows, columns = x.shape
    k, (y_out, x_out) = weight.shape[2], offset.shape[2:]
    out = torch.zeros(b, weight.shape[0], y_out, x_out, dtype=x.dtype)
    for n, p, q, tap in product(range(b), range(y_out), range(x_out), range(k * k)):
        y = p * stride - padding + tap // k * dilation + offset[n, 2 * tap, p, q].item()
        z = q * stride - padding + tap % k * dilation + offset[n, 2 * tap + 1, p, q].item()
        top, left, read = math.floor(y), math.floor(z), torch.zeros(x.shape[1], dtype=x.dtype)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            if 0 <= top + i < rows and 0 <= left + j < columns:
                share = (1 - abs(y - top - i)) * (1 - abs(z - left - j))
                read = read + share * x[n, :, top + i, left + j]
        out[n, :, p, q] += weight[:, :, tap // k, tap % k] @ read * mask[n, tap, p, q]
    return out


@settings(max_examples=4, deadline=None)
@given(y=st.integers(1, 5), x=st.integers(1, 6), stride=st.integers(1, 2), dilation=st.integers(1, 2))
def test_a_deformable_convolution_is_its_taps(y, x, stride, dilation):
    """Offsets (y, x) in cells, bilinear, zero outside; offsets of zero are the plain convolution."""
    maps, weight = pyramid((3,), y, x)[0], torch.linspace(-1, 1, 2 * 3 * 9, dtype=torch.float64).view(2, 3, 3, 3)
    plain = F.conv2d(maps, weight, stride=stride, padding=dilation, dilation=dilation)
    size = {"stride": stride, "padding": dilation, "dilation": dilation}
    still = torch.zeros(2, 18, *plain.shape[2:], dtype=torch.float64)
    torch.testing.assert_close(deform_conv2d(maps, still, weight, **size), plain, **EXACT)
    offset, mask = 2 * torch.sin(torch.arange(still.numel()).double()).view_as(still), still[:, :9] + 0.3
    got = deform_conv2d(maps, offset, weight, mask=mask, **size)
    torch.testing.assert_close(got, by_hand(maps, offset, weight, mask, **size), **EXACT)
    with pytest.raises(ValueError, match="mask: got shape"):
        deform_conv2d(maps, offset, weight, mask=mask[:, :3], **size)
    several = {"offset": torch.cat([offset, still, 0.7 * offset], 1), "mask": torch.cat([mask, 2 * mask, 3 * mask], 1)}
    parts = [
        by_hand(maps[:, n : n + 1], offset * share, weight[:, n : n + 1], mask * (n + 1), **size)
        for n, share in enumerate((1, 0, 0.7))
    ]
    got = deform_conv2d(maps, several["offset"], weight, mask=several["mask"], groups=3, **size)
    torch.testing.assert_close(got, parts[0] + parts[1] + parts[2], **EXACT)
    with pytest.raises(ValueError, match="groups: got 2, want a number that divides the 3 channels"):
        deform_conv2d(maps, offset, weight, groups=2, **size)


def stirred(neck):
    with torch.no_grad():
        for place, parameter in enumerate(neck.parameters()):
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(place))
            parameter.add_(0.2 * noise)
    return neck


def test_a_pyramid_convolution_is_its_equation():
    torch.manual_seed(0)
    neck, maps = (
        regard.neck("sepc(convolutions=2, deformable=none)")((4, 4, 4), out=4).double(),
        pyramid((4, 4, 4), 13, 9),
    )
    first = neck.eval().pyramids[0]
    own, finer, coarser = (layer.convolution for layer in (first.own, first.finer, first.coarser))
    mixed = [own(maps[0]) + resize(coarser(maps[1]), maps[0], "aligned")]
    mixed += [
        own(maps[1]) + finer(maps[0]) + resize(coarser(maps[2]), maps[1], "aligned"),
        own(maps[2]) + finer(maps[1]),
    ]
    for got, want in zip(first(maps), first.norm.over(mixed), strict=True):
        torch.testing.assert_close(got, torch.relu(want), **EXACT)


def test_offsets_of_zero_are_plain_convolutions():
    """Each mask is one half then, which the norm takes back."""
    torch.manual_seed(0)
    text, maps = "dyhead(blocks=1, levels=False, cells=False, tasks=False)", pyramid((5, 5, 5), 11, 7)
    neck = stirred(regard.neck(text)((5, 5, 5), out=32).double())
    still = regard.neck("dyhead(blocks=1, levels=False, tasks=False)")((5, 5, 5), out=32).double()
    still.load_state_dict(neck.state_dict(), strict=False)
    torch.nn.init.zeros_(still.blocks[0].offset.weight)
    torch.nn.init.zeros_(still.blocks[0].offset.bias)
    for layer in (still.blocks[0].coarser, still.blocks[0].own, still.blocks[0].finer):
        layer.norm.eps *= 0.25
    for got, each in zip(still(maps), neck(maps), strict=True):
        torch.testing.assert_close(got, each, **EXACT)


def test_a_gate_brought_to_a_smaller_level_is_squashed_too():
    """Means of hard sigmoids, as where it is brought to a larger one."""
    torch.manual_seed(0)
    injection = Injection(3).double().eval()
    x, gathered = pyramid((3,), 4, 3)[0], 5 * pyramid((3,), 8, 6)[0]
    gate = F.adaptive_avg_pool2d(F.hardsigmoid(injection.gate(gathered)), (4, 3))
    want = injection.own(x) * gate + F.adaptive_avg_pool2d(injection.more(gathered), (4, 3))
    torch.testing.assert_close(injection(x, gathered), want, **EXACT)
    assert gate.min() >= 0
    assert gate.max() <= 1


def test_a_neck_of_other_levels_than_it_is_given_chains_where_it_stands():
    """Three of four levels come out, each with its own channels; what follows takes these."""
    chain = regard.neck("gold_yolo(repeats=1, gathered=4) | fpn(extra=1)")((2, 4, 3, 5), out=4)
    assert chain.stands == [1, 2, 3, 4]
    assert chain.widths == [4] * 4
    assert regard.check(chain).holds
    assert regard.neck("gold_yolo(gathered=4)")((2, 4, 3, 5), out=(4, 8, 16)).widths == [4, 8, 16]
    with pytest.raises(ValueError, match=r"out: got .*, want one number"):
        regard.neck("fpn")((3, 5), out=(4, 8))


def test_ellipses_are_those_of_opencv():
    """Cells in each row of 5, 9 and 17, and how many in all."""
    assert [2 * half + 1 for _, half in ellipse(5)] == [1, 5, 5, 5, 1]
    assert [sum(2 * half + 1 for _, half in ellipse(side)) for side in (5, 9, 17)] == [17, 57, 213]


@settings(max_examples=5, deadline=None)
@given(y=st.integers(1, 19), x=st.integers(1, 19))
def test_a_dilation_is_the_maximum_of_its_cells(y, x):
    maps = pyramid((2,), y, x)[0]
    padded = F.pad(maps, (2, 2, 2, 2), value=float("-inf"))
    shifts = [(dy + 2, dx + 2) for dy, half in ellipse(5) for dx in range(-half, half + 1)]
    want = torch.stack([padded[:, :, dy : dy + y, dx : dx + x] for dy, dx in shifts]).amax(0)
    torch.testing.assert_close(dilated(maps, 5), want, **EXACT)


def test_medusa_head_is_its_equation():
    """Masks, convolutions, a bilinear step up and a share of each scale, written out; another task's head is apart."""
    torch.manual_seed(0)
    neck, maps = regard.neck("medusa_head")((3, 5), out=4).double(), pyramid((3, 5), 7, 6)
    total = torch.zeros(2, 4, 7, 6, dtype=torch.float64)
    for level, each in enumerate(maps):
        mask = torch.sigmoid(neck.masks[level].convolution(each))
        own = neck.own[level](mask * each).relu()
        own = F.interpolate(own, (7, 6), mode="bilinear", align_corners=False)
        total = total + own * torch.sigmoid(neck.attention[level](own))
    (found,) = neck(maps)
    torch.testing.assert_close(found, total, **EXACT)
    weighed = zip(neck.shares(maps), neck.grown(maps), strict=True)
    torch.testing.assert_close(sum(share * each for share, each in weighed), found, **EXACT)
