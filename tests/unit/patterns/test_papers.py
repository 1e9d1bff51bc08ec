"""What papers say of their patterns: reach, density, equality, and what a pattern of equal budget does worse."""

import itertools
import math

import pytest
import torch

import regard
from regard import patterns as p
from regard.claims.patterns import radial_error
from regard.kernels.block_sparse import plan as block_sparse

CAUSAL = regard.Layout(causal=True)


def draw(n, heads=2, dtype=torch.float64, dim=8):
    torch.manual_seed(0)
    return [torch.randn(1, heads, n, dim, dtype=dtype) for _ in range(3)]


def equals_masked(pattern, n):
    q, k, v = draw(n)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~pattern.dense(n), -torch.inf)
    torch.testing.assert_close(block_sparse.attend(q, k, v, pattern), torch.softmax(scores, -1) @ v, atol=1e-9, rtol=0)


def test_strided_pattern_reaches_everything():
    """Two layers of the Sparse Transformer's strided pattern reach every earlier token."""
    pattern = p.parse_pattern("Causal & (Window(8) | Strided(8))")
    assert torch.equal(pattern.reach(64, 2), torch.ones(64, 64).tril().bool())
    equals_masked(pattern, 200)


@pytest.mark.parametrize("layers", range(1, 7))
@pytest.mark.parametrize("block", [1, 3])
def test_power_reaches_double(layers, block):
    """PowerAttention: d layers cover every distance below 2^d, of tokens or of blocks, without holes."""
    n = 70 * block
    reach = (p.Causal() & p.Power(block)).reach(n, layers)
    apart = torch.arange(n)[:, None] // block - torch.arange(n) // block
    assert reach[(apart >= 0) & (apart < 2**layers) & torch.ones(n, n).tril().bool()].all()


def test_power_pairs_grow_as_n_log_n():
    """PowerAttention: the pairs of a query grow with the logarithm of its place."""
    assert [p.Power().pairs(1 << k) for k in (8, 12)] == [
        sum(1 + (i.bit_length() if i else 0) for i in range(1 << k)) for k in (8, 12)
    ]


def test_sinks_and_shifted_groups():
    """SinkLoRA: sinks are visible to every later query, and two layers pass every border of groups."""
    mechanism = regard.build("sinklora", heads=4, size=16, shifted=0.25, sinks=3)
    seen = mechanism.support(64, 64, CAUSAL)
    assert seen[0, :, 3:, :3].all()
    plain, shifted = (mechanism.pattern.head(h).dense(64)[0] for h in (0, 3))
    assert ((plain | shifted)[torch.arange(63), torch.arange(1, 64)]).all()
    assert torch.equal(plain.sum(1), torch.tensor([16] * 16 + [19] * 48))
    equals_masked(p.PerHead(mechanism.pattern.head(0), mechanism.pattern.head(3)), 64)


def brute_radial(frames, tokens, least, factor):
    """The reference's rules, frame by frame."""
    mask = torch.zeros(frames * tokens, frames * tokens, dtype=torch.bool)
    place = torch.arange(tokens)
    for a, b in itertools.product(range(frames), repeat=2):
        t = abs(a - b)
        decay = 2 ** tokens.bit_length() / 2 ** t.bit_length()
        width = tokens if t <= 1 else max(factor * decay, least)
        part = (place[:, None] - place).abs() <= width
        if t > 1 and decay < least and t % int(least / decay):
            part = torch.zeros_like(part)
        mask[a * tokens : (a + 1) * tokens, b * tokens : (b + 1) * tokens] = part if b else True
    return mask


@pytest.mark.parametrize(
    ("frames", "tokens", "least", "factor"), [(9, 8, 2, 1.0), (20, 5, 3, 0.5), (12, 16, 8, 0.5), (3, 1, 1, 0.2)]
)
def test_radial_follows_its_rules(frames, tokens, least, factor):
    """Radial Attention: bands that halve, frames that are left out, the first frame as a sink."""
    pattern = p.Radial((frames, tokens), least, factor)
    assert torch.equal(pattern.dense(frames * tokens)[0], brute_radial(frames, tokens, least, factor))
    equals_masked(pattern, frames * tokens)


def test_radial_density():
    """Radial Attention: pairs beyond the first frame grow as n log n in the number of frames."""
    frames = [2**k for k in range(4, 9)]
    pairs = [p.Radial((f, 64), 8).pairs(f * 64) for f in frames]
    growth = math.log2(pairs[-1] / pairs[-2])
    assert growth < 1.35
    assert p.Radial((256, 64), 8).density(256 * 64) < 0.12


def test_radial_beats_a_window():
    """Radial Attention: on scores that decay over space and time, half the error of an equally dense window."""
    errors = radial_error.measure()
    assert errors["radial"] <= 0.5 * errors["window"]


@pytest.mark.parametrize("frames", [1, 2, 5, 16])
@pytest.mark.parametrize("references", [0, 1, 3])
def test_attention_tiles(frames, references):
    """Efficient-vDiT: of f frames with k references f + 2 k f − k² − k pairs of frames are kept."""
    chosen = list(range(min(references, frames)))
    pattern, k = p.attention_tiles(frames, 3, chosen), len(chosen)
    kept = frames + 2 * k * frames - k * k - k
    assert pattern.pairs(frames * 3) == kept * 9
    equals_masked(pattern, frames * 3)


@pytest.mark.parametrize(
    ("queries", "keys", "extent"), [((4, 4, 4), (4, 4, 4), 1), ((4, 6), (2, 3), (0, 1)), ((8,), (3,), 1)]
)
def test_nearby(queries, keys, extent):
    """NÜWA: nearby attention between grids of other sizes is the neighbourhood of scaled coordinates."""
    spans = (extent,) * len(queries) if isinstance(extent, int) else extent
    cells = [list(itertools.product(*(range(s) for s in grid))) for grid in (queries, keys)]
    want = [
        [
            all(abs(x * b // a - y) <= e for x, y, a, b, e in zip(i, j, queries, keys, spans, strict=True))
            for j in cells[1]
        ]
        for i in cells[0]
    ]
    assert torch.equal(p.nearby(queries, keys, extent), torch.tensor(want))


def test_inward_window():
    """FreeSwim: every query sees exactly (2 d_h + 1)(2 d_w + 1) T keys, at the borders too."""
    mask = p.inward_window(3, 7, 9, 2, 1).dense(3 * 7 * 9)[0]
    assert (mask.sum(1) == 5 * 3 * 3).all()


@pytest.mark.parametrize(("views", "times"), [*itertools.product(range(1, 7), repeat=2)])
def test_fused_view_time(views, times):
    """4Real-Video-V2: the share of kept pairs is (V + T − 1) / (V T) exactly."""
    pattern = p.fused_view_time(views, times, 2)
    assert pattern.density(views * times * 2) == pytest.approx((views + times - 1) / (views * times))
    equals_masked(pattern, views * times * 2)


def test_part_attention():
    """Ultra3D: equals dense attention under the block-diagonal mask; pairs are Σ n_p²."""
    ids = torch.randint(0, 5, (120,), generator=torch.Generator().manual_seed(0))
    pattern = p.part_attention(ids)
    assert torch.equal(pattern.dense(120)[0], ids[:, None] == ids)
    assert pattern.pairs(120) == ids.bincount().square().sum()
    equals_masked(pattern, 120)


def test_all_to_first():
    """Puppet-Master: every frame reads the first alone; the first frame is ordinary spatial attention."""
    q, k, v = draw(4 * 6)
    out = block_sparse.attend(q, k, v, p.all_to_first(4, 6))
    fused = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(out, fused(q, k[:, :, :6], v[:, :, :6]), atol=1e-12, rtol=0)


def test_isolation():
    """IR-Diffusion: attention between different subjects is exactly zero, and all see the background."""
    subjects = torch.tensor([0, 1, 1, 2, 0, 2, 1, 2, 3])
    mechanism = regard.build("pattern", of=p.isolation(subjects))
    q, k, _ = draw(9)
    weights = mechanism.weights(q, k)[0, 0]
    other = (subjects[:, None] != subjects) & (subjects > 0)[:, None] & (subjects > 0)
    assert (weights[other] == 0).all()
    assert (weights[~other] > 0).all()


def test_multi_axis():
    """MaxViT: after block and grid attention every pixel reaches every pixel."""
    blocks, grid = p.multi_axis((12, 8), (3, 4))
    first, second = blocks.dense(96)[0].float(), grid.dense(96)[0].float()
    assert ((second @ first) > 0).all()
    assert not (first > 0).all()


def test_chunks():
    """Recurrent-memory Transformers: inside of chunks the pairs of a token do not grow."""
    assert [p.chunked(8).pairs(n) for n in (8, 64, 512)] == [64, 512, 4096]


def test_decoding_forgets():
    """A pattern's state holds what can still be seen and no more, token by token."""
    mechanism = regard.build("pattern", of="Window(16) | Sinks(2)")
    state, sizes = mechanism.start(1), []
    for _ in range(200):
        q, k, v = (torch.randn(1, 2, 1, 4) for _ in range(3))
        _, state = mechanism.extend(q, k, v, state)
        sizes.append(state.positions.shape[1])
    assert max(sizes) == 17
    assert set(state.positions[0].tolist()) == {0, 1, *range(185, 200)}
