"""What papers say of their patterns: reach, density, equality, and what a pattern of equal budget does worse."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

import regard
from regard import patterns as p
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.experiments.timing import interleaved
from regard.kernels.block_sparse import plan as block_sparse
from regard.mechanisms.sparse.shifted import ShiftedGroups

CAUSAL = Layout(causal=True)


def draw(n: int, heads: int = 2, dtype: torch.dtype = torch.float64, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, dim, dtype=dtype) for _ in range(3))
    return q, k, v


def apart(pattern: p.Pattern, n: int) -> float:
    """How far block-sparse attention under a pattern is from masked dense attention."""
    q, k, v = draw(n)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~pattern.dense(n), -torch.inf)
    return (block_sparse.attend(q, k, v, pattern) - torch.softmax(scores, -1) @ v).abs().max().item()


def exact(found: Figures) -> Finding:
    """What is counted is what the formula says in every case, and attention is masked dense attention to 1e-9."""
    right, worst = found("exact"), max(found("apart"))
    return Finding.of(f"exact in {sum(right)} of {len(right)} cases; equal to {worst:.0e}", all(right), worst < 1e-9)


@measured()
def strided() -> dict[str, float | bool]:
    """Whether two layers of the strided pattern reach every earlier token, and no later one."""
    pattern = p.parse_pattern("Causal & (Window(8) | Strided(8))")
    reach = torch.equal(pattern.reach(64, 2), torch.ones(64, 64).tril().bool())
    return {"exact": reach, "apart": apart(pattern, 200)}


@measured()
def composed() -> dict[str, float | bool]:
    """How far attention under some compositions is from masked dense attention, and whether a union counts right."""
    texts = ("Window(5) | Sinks(2)", "Causal & Dilated(3, 4)", "Causal & (Blocks(7) | Power())", "~Window(9)")
    known = [p.parse_pattern(text) for text in texts[:1] + texts[2:3]]
    return {
        "exact": all(int(one.dense(97).sum()) == one.pairs(97) for one in known),
        "apart": max(apart(one, 97) for one in known),
    }


@measured(layers=range(1, 7), block=(1, 3))
def power(layers: int, block: int) -> dict[str, float | bool]:
    """Whether so many layers cover every distance below 2^layers, of tokens or of blocks, without holes."""
    n, pattern = 70 * block, p.Causal() & p.Power(block)
    far = torch.arange(n)[:, None] // block - torch.arange(n) // block
    below = (far >= 0) & (far < 2**layers) & torch.ones(n, n).tril().bool()
    return {"exact": bool(pattern.reach(n, layers)[below].all()), "apart": apart(pattern, n)}


@measured(log_n=(8, 12))
def power_pairs(log_n: int) -> dict[str, bool]:
    """Whether the pairs of a query grow with the logarithm of its place."""
    n = 1 << log_n
    return {"exact": p.Power().pairs(n) == sum(1 + (i.bit_length() if i else 0) for i in range(n))}


@measured()
def shifted_groups() -> dict[str, float | bool]:
    """Whether sinks are seen from everywhere and two layers pass every border; equality with masked attention."""
    mechanism = regard.build("sinklora", heads=4, size=16, shifted=0.25, sinks=3)
    seen = mechanism.support(64, 64, CAUSAL)
    assert isinstance(mechanism, ShiftedGroups)
    pattern = mechanism.pattern
    plain, shifted = (pattern.head(h).dense(64)[0] for h in (0, 3))
    passed = (plain | shifted)[torch.arange(63), torch.arange(1, 64)].all()
    counts = torch.equal(plain.sum(1), torch.tensor([16] * 16 + [19] * 48))
    far = apart(p.PerHead(pattern.head(0), pattern.head(3)), 64)
    return {"exact": bool(seen[0, :, 3:, :3].all() and passed) and counts, "apart": far}


def radial_by_rules(frames: int, tokens: int, least: int) -> Tensor:
    """The reference's rules, frame by frame."""
    mask = torch.zeros(frames * tokens, frames * tokens, dtype=torch.bool)
    place = torch.arange(tokens)
    for a, b in itertools.product(range(frames), repeat=2):
        t = abs(a - b)
        decay = 2 ** tokens.bit_length() / 2 ** t.bit_length()
        width = tokens if t <= 1 else max(0.5 * decay, least)  # the authors' decay_factor
        part = (place[:, None] - place).abs() <= width
        if t > 1 and decay < least and t % int(least / decay):
            part = torch.zeros_like(part)
        mask[a * tokens : (a + 1) * tokens, b * tokens : (b + 1) * tokens] = part if b else True
    return mask


@measured(case=("9 8 2", "20 5 3", "12 16 8", "3 1 1"))
def radial(case: str) -> dict[str, float | bool]:
    """Whether the pattern of so many frames, tokens and least width is that of the rules."""
    frames, tokens, least = map(int, case.split())
    pattern = p.Radial((frames, tokens), least)
    same = torch.equal(pattern.dense(frames * tokens)[0], radial_by_rules(frames, tokens, least))
    return {"exact": same, "apart": apart(pattern, frames * tokens)}


@measured(frames=(128, 256))
def radial_pairs(frames: int) -> dict[str, float | int]:
    """Pairs of frames of 64 tokens, and their share of all."""
    pattern = p.Radial((frames, 64), 8)
    return {"pairs": pattern.pairs(frames * 64), "density": pattern.density(frames * 64)}


def grows_as_n_log_n(found: Figures) -> Finding:
    """Growth below n^1.35 at 256 frames, where less than 12% of the pairs are kept."""
    growth, density = math.log2(found.one("pairs", frames=256) / found.one("pairs", frames=128)), found("density")[1]
    return Finding.of(f"n^{growth:.2f} at 256 frames, {density:.1%} of the pairs", growth < 1.35, density < 0.12)


@measured()
def radial_error() -> dict[str, float]:
    """On scores that decay over space and time: the relative error of the pattern and of a window of its density."""
    frames, tokens = 24, 32
    n, radial = frames * tokens, p.Radial((frames, tokens), 4)
    frame, place = torch.arange(n) // tokens, torch.arange(n) % tokens
    torch.manual_seed(0)
    decay = -0.3 * (frame[:, None] - frame).abs() - 0.35 * (place[:, None] - place).abs()
    scores, v = decay + 0.3 * torch.randn(n, n), torch.randn(n, 16)
    size = next(w for w in range(1, n) if p.Window(w).density(n) >= radial.density(n))
    want, errors = torch.softmax(scores, -1) @ v, {}
    for name, pattern in (("radial", radial), ("window", p.Window(size))):
        hidden = scores.masked_fill(~pattern.dense(n)[0], -torch.inf)
        errors[name] = ((torch.softmax(hidden, -1) @ v - want).norm() / want.norm()).item()
    return errors


def is_half_as_wrong(found: Figures) -> Finding:
    """At most half the window's error."""
    own, window = found.one("radial"), found.one("window")
    return Finding.of(f"relative error {own:.3f}, of a window of equal density {window:.3f}", own <= 0.5 * window)


@measured(frames=(1, 2, 5, 16), references=(0, 1, 3))
def attention_tiles(frames: int, references: int) -> dict[str, float | bool]:
    """Whether f + 2 k f − k² − k pairs of frames are kept."""
    chosen = list(range(min(references, frames)))
    pattern, k = p.attention_tiles(frames, 3, chosen), len(chosen)
    kept = frames + 2 * k * frames - k * k - k
    return {"exact": pattern.pairs(frames * 3) == kept * 9, "apart": apart(pattern, frames * 3)}


@measured(case=("4 4 4|4 4 4|1 1 1", "4 6|2 3|0 1", "8|3|1"))
def nearby(case: str) -> dict[str, bool]:
    """Whether nearby attention between grids is the neighbourhood of scaled coordinates."""
    queries, keys, extent = (tuple(map(int, part.split())) for part in case.split("|"))
    cells = [list(itertools.product(*(range(s) for s in grid))) for grid in (queries, keys)]
    want = [
        [
            all(abs(x * b // a - y) <= e for x, y, a, b, e in zip(i, j, queries, keys, extent, strict=True))
            for j in cells[1]
        ]
        for i in cells[0]
    ]
    return {"exact": torch.equal(p.nearby(queries, keys, extent), torch.tensor(want))}


@measured()
def inward() -> dict[str, int]:
    """The fewest and the most keys that a query sees, of windows of 5 × 3 cells over 3 frames."""
    seen = p.inward_window(3, 7, 9, 2, 1).dense(3 * 7 * 9)[0].sum(1)
    return {"least": int(seen.min()), "most": int(seen.max())}


def same_everywhere(found: Figures) -> Finding:
    """Exactly (2 d_h + 1)(2 d_w + 1) T."""
    least, most = found.one("least"), found.one("most")
    return Finding.of(f"{least} to {most} keys a query, by the formula {5 * 3 * 3}", least == most == 5 * 3 * 3)


@measured(views=range(1, 7), times=range(1, 7))
def view_time(views: int, times: int) -> dict[str, float | bool]:
    """Whether the share of kept pairs is (V + T − 1) / (V T)."""
    pattern = p.fused_view_time(views, times, 2)
    share = pattern.density(views * times * 2) - (views + times - 1) / (views * times)
    return {"exact": abs(share) < 1e-12, "apart": apart(pattern, views * times * 2)}


@measured()
def parts() -> dict[str, float | bool]:
    """Whether part attention is the block-diagonal mask with Σ n_p² pairs."""
    ids = torch.randint(0, 5, (120,), generator=torch.Generator().manual_seed(0))
    pattern = p.part_attention(ids)
    diagonal = torch.equal(pattern.dense(120)[0], ids[:, None] == ids)
    return {
        "exact": diagonal and pattern.pairs(120) == int(ids.bincount().square().sum()),
        "apart": apart(pattern, 120),
    }


@measured()
def parts_time() -> dict[str, float]:
    """The time of 8 equal parts of 8,192 voxels over that of dense attention, turn by turn."""
    pattern = p.part_attention(torch.arange(8192) // 1024)
    q, k, v = draw(8192, heads=4, dtype=torch.float32, dim=64)
    device = torch.device("cpu")
    return {
        "ratio": interleaved(lambda: block_sparse.attend(q, k, v, pattern), lambda: fused(q, k, v), device, 4).median
    }


@measured()
def first_frame() -> dict[str, float]:
    """How far every frame's reading of the first is from attention to the first frame alone."""
    q, k, v = draw(4 * 6)
    out = block_sparse.attend(q, k, v, p.all_to_first(4, 6))
    return {"apart": (out - fused(q, k[:, :, :6], v[:, :, :6])).abs().max().item()}


@measured()
def isolated() -> dict[str, float]:
    """The largest weight between different subjects, and the least of all others."""
    subjects = torch.tensor([0, 1, 1, 2, 0, 2, 1, 2, 3])
    mechanism = regard.build("pattern", of=p.isolation(subjects))
    q, k, _ = draw(9)
    weights = mechanism.weights(q, k)[0, 0]
    other = (subjects[:, None] != subjects) & (subjects > 0)[:, None] & (subjects > 0)
    return {"between": weights[other].max().item(), "others": weights[~other].min().item()}


def is_zero_between(found: Figures) -> Finding:
    """Exactly zero between subjects, and nowhere else."""
    between, others = found.one("between"), found.one("others")
    figure = f"largest weight between subjects {between:.0g}, least of the others {others:.1g}"
    return Finding.of(figure, between == 0, others > 0)


@measured()
def multi_axis() -> dict[str, float]:
    """The share of pairs of pixels that a block layer reaches, and a block and a grid layer."""
    blocks, grid = p.multi_axis((12, 8), (3, 4))
    first, second = blocks.dense(96)[0].float(), grid.dense(96)[0].float()
    return {"one": (first > 0).double().mean().item(), "both": ((second @ first) > 0).double().mean().item()}


def reaches_all(found: Figures) -> Finding:
    """All after the pair, not after the first."""
    one, both = found.one("one"), found.one("both")
    return Finding.of(f"{both:.0%} of the pairs of 12 × 8 cells, after one layer {one:.0%}", both == 1, one < 1)


@measured(n=(8, 64, 512))
def chunks(n: int) -> dict[str, float]:
    """Pairs of a token in chunks of 8."""
    return {"pairs": p.chunked(8).pairs(n) / n}


def do_not_grow(found: Figures) -> Finding:
    """Always the size of a chunk."""
    values = found("pairs")
    return Finding.of(f"{', '.join(f'{x:g}' for x in values)} pairs a token of 8, 64 and 512", set(values) == {8})
