"""Patterns: the laws at every one of them, entries by rules written without them, neighbourhoods by brute force."""

import itertools
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from regard import patterns as p
from regard.core.kinds import Sample
from regard.kernels.block_sparse import plan as block_sparse
from regard.laws import examine, laws_of
from regard.patterns.base import GLANCE, Region
from regard.patterns.grid import held, tiles
from regard.patterns.named import fused_view_time, inward_window

GRID = (6, 7)
LINE = [
    *(
        "Causal",
        "Window(5)",
        "Dilated(3, 4)",
        "Trailing(5)",
        "Trailing(4, 3, 2)",
        "Strided(5)",
        "Power",
        "Power(3)",
        "Sinks(4)",
    ),
    *(
        "GlobalKeys(3, 30)",
        "GlobalQueries(2)",
        "Global(0, 17)",
        "Blocks(8)",
        "Blocks(8, 4)",
        "Before(8)",
        "Segments(10, 1, 31)",
    ),
    *("Random(0.3)", "Random(0.5, block=4, seed=3)", "Causal & (Window(6) | Strided(6))", "~Window(9)"),
    *(
        "Causal & ~Sinks(2)",
        "Causal & (Window(4) | Sinks(2) | Power(2))",
        "PerHead(Window(3), Causal & Strided(4), Sinks(1))",
    ),
]
ON_GRID = [
    *("Neighborhood({g}, 3)", "Neighborhood({g}, (5, 2), causal=(False, True))", "Neighborhood({g}, 3, dilation=2)"),
    *("Neighborhood({g}, 4, stride=(2, 4))", "Tiles({g}, (4, 3))", "GridTokens({g}, (2, 3))", "Same({g}, 1)"),
    *(
        "Same({g})",
        "Plane({g})",
        "Plane({g}, (1, 3), axis=1)",
        "Radial({g})",
        "Radial({g}, 2)",
        "RoundedRadial({g}, 4, 2)",
        "Neighborhood({g}, 3) | Sinks(2)",
    ),
    *("Causal & Neighborhood({g}, 5)", "Same({g}) | Same({g}, 1)"),
]
TEXTS = [*LINE, *(text.format(g=GRID) for text in ON_GRID)]
TOTAL = math.prod(GRID)


@pytest.mark.parametrize("law", laws_of("pattern"))
@pytest.mark.parametrize("text", TEXTS)
def test_laws(text, law):
    sample = Sample(text, p.parse_pattern(text), {"tokens": TOTAL})
    finding = examine(sample, law, kind="pattern")
    assert finding.verdict in ("holds", "not claimed"), finding.detail


def test_blocks_longer_than_a_frame_that_hold_none_whole():
    """16 tokens cover each place of frames of 13, but in two frames: of those 4 apart and more, some are left out."""
    finding = examine(Sample("long", p.Radial((10, 13), 4, 0.25), {"tokens": 130}), "bounds", kind="pattern")
    assert finding.verdict == "holds", finding.detail


def test_the_law_of_what_is_forgotten_counts_keys_that_no_later_query_sees():
    """Of eight tokens asked about at 0, 3, 4 and 7, each of which sees itself and the two before it: 0, 1, 2 and 5."""
    pattern = p.parse_pattern("Trailing(3)")
    assert pattern.dense(8)[0].sum(1).tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    assert examine(Sample("three", pattern, {"tokens": 8}), "future", kind="pattern").detail == "8 keys forgotten"


@pytest.mark.parametrize("text", LINE)
@pytest.mark.parametrize(("n", "m"), [(42, 5), (0, 3), (3, 0)])
def test_more_queries_than_keys_and_none(text, n, m):
    pattern = p.parse_pattern(text)
    if "Segments" in text and m:
        with pytest.raises(ValueError, match="lengths"):
            pattern.dense(n, m)
        return
    mask = pattern.dense(n, m)
    assert mask.shape == (pattern.heads, n, m)
    assert not mask[:, : max(n - m, 0)].any()


@pytest.mark.parametrize("text", ["Window(5)", "Sinks(4)", "Blocks(8)", "GlobalKeys(3, 30)"])
def test_what_is_kept_is_seen_again(text):
    """Beside causality, nothing is kept that no later query sees."""
    pattern = p.parse_pattern(text)
    causal = p.Causal() & pattern
    later = causal.dense(TOTAL)[:, 20:].any(1).any(0)
    assert torch.equal(pattern.future(torch.arange(20), 20), later[:20])


def test_nearby_cells_of_another_grid():
    """In the block-sparse kernel, too, which refuses more queries than keys."""
    pattern, n, m = p.Nearby((2, 3), (4, 5), 1), 6, 20
    q, k, v = (torch.randn(1, 2, size, 5, dtype=torch.float64) for size in (n, m, m))
    scores = (q @ k.mT * 5**-0.5).masked_fill(~pattern.dense(n, m), -torch.inf)
    got = block_sparse.attend(q, k, v, pattern)
    torch.testing.assert_close(got, torch.softmax(scores, -1) @ v, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="q: got 20 queries over 6 keys, want at most as many"):
        block_sparse.attend(k, q, q, p.Nearby((4, 5), (2, 3), 1))


def brute(grid, window, stride, dilation, causal):
    """Neighbourhoods cell by cell, from lists."""
    cells = list(itertools.product(*(range(size) for size in grid)))

    def sees(a, b, size, w, s, d, one_sided):
        if a % d != b % d:
            return False
        line = list(range(a % d, size, d))
        at, to = line.index(a), line.index(b)
        group = [x for x in range(len(line)) if x // s == at // s]
        if one_sided:
            leader = min(at // s * s + s - 1, len(line) - 1)
            return leader - w < to <= at
        if w >= len(line):
            return True
        middle = min(group[0] + s // 2, len(line) - 1)
        start = min(max(middle - w // 2, 0), len(line) - w)
        return start <= to < start + w

    return torch.tensor([[all(map(sees, a, b, grid, window, stride, dilation, causal)) for b in cells] for a in cells])


@st.composite
def neighbourhoods(draw):
    axes = draw(st.integers(1, 3))
    grid = [draw(st.integers(1, {1: 40, 2: 8, 3: 4}[axes])) for _ in range(axes)]
    window = [draw(st.integers(1, size + 2)) for size in grid]
    stride = [draw(st.integers(1, w)) for w in window]
    dilation = [draw(st.integers(1, 4)) for _ in grid]
    return grid, window, stride, dilation, [draw(st.booleans()) for _ in grid]


@hypothesis.given(neighbourhoods())
@hypothesis.settings(max_examples=60, deadline=None)
def test_neighbourhoods_by_brute_force(given):
    grid, window, stride, dilation, causal = given
    pattern, total = p.Neighborhood(grid, window, stride, dilation, causal), math.prod(grid)
    want = brute(*given)
    assert torch.equal(pattern.dense(total)[0], want)
    assert pattern.pairs(total) == want.sum()
    assert want.any(1).all()


@pytest.mark.parametrize("text", ["Sinks(91) & ~Sinks(90)", "~(Sinks(91) & ~Sinks(90))"])
def test_blocks_larger_than_a_glance_are_settled_by_all_of_their_tokens(text):
    """Key 90 alone differs; it is not among those that are looked at first."""
    pattern, n = p.parse_pattern(text), 517
    assert 90 not in Region.runs(torch.arange(n), 170).few(GLANCE).tokens
    cover, mask = pattern.cover(n, rows=130, cols=170), pattern.dense(n)[0]
    for block, rows in enumerate(mask.split(130)):
        parts = rows.split(170, dim=1)
        assert cover.lists(0, block).tolist() == [at for at, part in enumerate(parts) if part.any()]
        full = cover.full[int(cover.offsets[block]) : int(cover.offsets[block + 1])]
        assert full.tolist() == [bool(part.all()) for part in parts if part.any()]


@pytest.mark.parametrize("text", ["Causal & (Window(64) | Sinks(4))", "Causal & Power(64)", "Blocks(700) & Causal"])
def test_pairs_of_long_texts_are_those_of_the_mask(text):
    pattern = p.parse_pattern(text)
    for n, m in ((8999, 8999), (4107, 9001)):
        assert pattern.pairs(n, m) == sum(
            int(pattern.dense(n, m, rows=slice(i, i + 999)).sum()) for i in range(0, n, 999)
        )


@pytest.mark.parametrize("text", ["Causal & Window(4096)", "Causal & (Power(1024) | Sinks(1024))", "Blocks(1000)"])
def test_a_million_tokens(text):
    """Covers of a million tokens are exact, and need nothing of the size of the 2^40 pairs."""
    n, pattern = 1 << 20, p.parse_pattern(text)
    cover = pattern.cover(n, rows=1024, cols=1024)
    for a in (0, 5, 511, 1023):
        i, found = torch.arange(a * 1024, (a + 1) * 1024), cover.lists(0, a)
        for b in {0, a, max(a - 1, 0), max(a - 4, 0), max(a - 5, 0), max(a - 8, 0), max(a - 100, 0)}:
            seen = pattern.visible(i[:, None], torch.arange(b * 1024, (b + 1) * 1024), n)
            assert bool(seen.any()) == bool((found == b).any())


def test_reach():
    """Layers of a causal window of w see exactly w − 1 further each; powers double their reach."""
    far = (p.Causal() & p.Window(4)).reach(40, 3)
    assert int((torch.arange(40)[:, None] - torch.arange(40))[far].max()) == 9
    assert torch.equal(p.Power().reach(32, 5), torch.ones(32, 32).tril().bool())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: p.Window(0), "size"),
        (lambda: p.Sinks(-1), "count"),
        (lambda: p.Dilated(3, 0), "dilation"),
        (lambda: p.Neighborhood((4, 0), 3), "grid"),
        (lambda: p.Neighborhood((2, 2, 2, 2), 3), "grid"),
        (lambda: p.Neighborhood((4, 4), (3, 3, 3)), "window"),
        (lambda: p.Neighborhood((4, 4), -3), "window"),
        (lambda: p.Neighborhood((4, 4), 3, stride=4), "stride"),
        (lambda: p.Neighborhood((4, 4), 3).dense(15), "grid"),
        (lambda: p.Neighborhood((4, 4), 3) & p.Neighborhood((2, 8), 3), "&"),
        (lambda: p.PerHead(), "patterns"),
        (lambda: p.Segments(3, 0), "lengths"),
        (lambda: p.Radial(5), "grid"),
        (lambda: p.Random(2.0), "share"),
        (lambda: p.Causal().cover(5, rows=0), "rows"),
        (lambda: p.parse_pattern("Window("), "pattern"),
        (lambda: p.parse_pattern("Windows(3)"), "pattern"),
        (lambda: p.parse_pattern("Window(3, 4, 5)"), "Window"),
        (lambda: p.parse_pattern("__import__('os')"), "pattern"),
    ],
)
def test_bad_input_is_named(make, argument):
    with pytest.raises(ValueError, match=argument) as caught:
        make()
    assert "want" in str(caught.value)


RULES = {
    "Causal": lambda i, j: j <= i,
    "Window(5)": lambda i, j: -5 < i - j < 5,
    "Dilated(3, 4)": lambda i, j: i - j in (-8, -4, 0, 4, 8),
    "Strided(5)": lambda i, j: (i - j) % 5 == 0,
    "Power": lambda i, j: i - j in (0, 1, 2, 4, 8, 16, 32),
    "Power(3)": lambda i, j: i // 3 - j // 3 in (0, 1, 2, 4, 8),
    "Trailing(4, 3, 2)": lambda i, j: j <= i and (i - j) % 2 == 0 and i // 2 // 3 * 3 + 2 - j // 2 < 4,
    "Sinks(4)": lambda i, j: j in (0, 1, 2, 3),
    "GlobalKeys(3, 30)": lambda i, j: j in (3, 30),
    "GlobalQueries(2)": lambda i, j: i == 2,
    "Global(0, 17)": lambda i, j: i in (0, 17) or j in (0, 17),
    "Blocks(8)": lambda i, j: i // 8 == j // 8,
    "Blocks(8, 4)": lambda i, j: (i + 4) // 8 == (j + 4) // 8,
    "Before(8)": lambda i, j: j // 8 < i // 8,
    "Segments(10, 1, 31)": lambda i, j: (i < 10) == (j < 10) and (i == 10) == (j == 10),
    "~Window(9)": lambda i, j: abs(i - j) >= 9,
    "Causal & (Window(6) | Strided(6))": lambda i, j: j <= i and (i - j < 6 or (i - j) % 6 == 0),
    f"Tiles({GRID}, (4, 3))": lambda i, j: (i // 7 // 4, i % 7 // 3) == (j // 7 // 4, j % 7 // 3),
    f"GridTokens({GRID}, (2, 3))": lambda i, j: (i // 7 % 2, i % 7 % 3) == (j // 7 % 2, j % 7 % 3),
    f"Same({GRID}, 1)": lambda i, j: i % 7 == j % 7,
    f"Plane({GRID}, (1, 3), axis=1)": lambda i, j: j % 7 in (1, 3),
}


@pytest.mark.parametrize("text", RULES)
def test_patterns_are_what_their_names_say(text):
    """Every entry of the dense mask, by a rule written without the pattern."""
    want = torch.tensor([[RULES[text](i, j) for j in range(TOTAL)] for i in range(TOTAL)])
    assert torch.equal(p.parse_pattern(text).dense(TOTAL)[0], want)


@pytest.mark.parametrize(
    "text",
    [
        *("Causal", "Window(5)", "Window(5) | Sinks(2)", "Trailing(5, 2)", "Dilated(3, 2)", "Strided(4)", "Power(3)"),
        *("GlobalKeys(30, 2)", "Global(3)", "Blocks(5, 2)", "Before(4)", "Random(0.4, 3)", "~Blocks(7) & Causal"),
        "PerHead(Window(3), Blocks(4))",
    ],
)
def test_an_endless_pattern_is_a_part_of_itself_among_more_tokens(text):
    pattern = p.parse_pattern(text)
    assert pattern.endless
    for n in (1, 19, 36):
        assert torch.equal(pattern.dense(37)[:, :n, :n], pattern.dense(n))


@pytest.mark.parametrize(
    "text", ["Segments(3, 4)", "Neighborhood((7,), 3)", "Causal & Neighborhood(7, 3)", "Radial((2, 3))"]
)
def test_a_pattern_of_one_length_is_not_endless(text):
    assert not p.parse_pattern(text).endless


@pytest.mark.parametrize(
    "text",
    [
        *("Causal & (Window(20) | Sinks(4))", "Blocks(16) | Strided(7)", "Causal & Power(4)", "~Window(3)"),
        *("PerHead(Causal & Window(5), Causal)", "Dilated(3, 2) | Global(2, 5)", "Random(0.3, 4)"),
    ],
)
@pytest.mark.parametrize(("n", "m", "rows"), [(13, 13, None), (7, 29, slice(3, 6)), (29, 13, None), (1, 37, None)])
def test_rows_of_the_mask_are_what_single_pairs_say(text, n, m, rows):
    """A mask from offsets alone is made without looking at pairs."""
    pattern = p.parse_pattern(text)
    i, j = torch.arange(m - n, m)[rows or slice(None)][:, None], torch.arange(m)
    pairs = torch.stack([pattern.head(h).visible(i, j, m).expand(len(i), m) for h in range(pattern.heads)])
    assert torch.equal(pattern.dense(n, m, rows=rows), pairs & (i >= 0))


@hypothesis.given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.sampled_from(["queries", "keys"]))
def test_boxes_keep_their_cells_and_fit_short_axes(grid, of):
    box = {"queries": (8, 8), "keys": (2, 2)}[of] if len(grid) == 2 else {"queries": (4, 4, 4), "keys": (2, 2, 2)}[of]
    found = held(box, grid)
    assert math.prod(found) == math.prod(box)
    wasted = any(side >= 2 * size for side, size in zip(found, grid, strict=True) if side > 1)
    room = any(side < size for side, size in zip(found, grid, strict=True))
    assert not (wasted and room)
    seen = tiles(grid, found).tokens
    assert sorted(set(seen.flatten().tolist())) == list(range(math.prod(grid)))


def test_two_frames_are_not_computed_twice():
    """With boxes of four frames, every cell of two would stand in its box twice."""
    window = inward_window(2, 40, 40, 5, 5)
    assert block_sparse.cells(window, 3200, 3200) < 0.2 * 3200**2


def test_views_and_times_stand_apart_in_blocks():
    """In boxes of several views and times, three quarters of all pairs would be computed."""
    fused = fused_view_time(8, 8, 64)
    assert block_sparse.cells(fused, 4096, 4096) == fused.pairs(4096)
    squares, runs = (
        block_sparse.boxes_of(p.Neighborhood((64, 64), 7), 4096, 4096),
        block_sparse.boxes_of(fused, 4096, 4096),
    )
    assert (squares, runs) == (block_sparse.TILES, block_sparse.RUNS)
