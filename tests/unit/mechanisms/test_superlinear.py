"""Superlinear attention: by hand, and as the author's kernels have it (tests/reference/spans.py)."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.superlinear import Superlinear
from regard.networks.lm import LM, Config

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "spans.json").read_text())
CASES = {
    "plain": Superlinear(),
    "window": Superlinear(2, 3, 1, 2),
    "powers": Superlinear(3, 1.5, 0.5, 1, 0.55, 0.4),
}
CAUSAL, TOKENS, PADDED, ROUNDED = Layout(causal=True), 71, 13, 24


def wave(shape, phase):
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(count * 0.7310585786 + phase).reshape(shape)


def drawn() -> dict[str, torch.Tensor]:
    """As tests/reference/spans.py has it."""
    names = ("q", "asked", "k", "v")
    return {name: 2 * wave((1, 2, TOKENS, 8), 0.1 + place).float() for place, name in enumerate(names)}


def near(got, want) -> None:
    torch.testing.assert_close(got, torch.tensor(want), atol=5e-6, rtol=5e-5)


@pytest.mark.parametrize("name", CASES)
def test_anchors_and_spans_of_the_author(name):
    mechanism, x, want = CASES[name], drawn(), VALUES[name]
    here = torch.arange(TOKENS)
    anchors = mechanism.search(x["asked"], x["k"], here)
    first, last = mechanism.bounds(anchors, here)
    some, there = slice(None, None, 3), torch.tensor(want["anchors"]) >= 0
    assert mechanism.window == want["window"]
    assert torch.equal(anchors[:, :, some], torch.tensor(want["anchors"]))
    for got, name in ((first, "first"), (last, "last")):
        assert torch.equal(got[:, :, some][there], torch.tensor(want[name])[there]), name
    assert (~there).any()
    assert there.double().mean() > 0.5


@pytest.mark.parametrize("way", ["forward", "weights"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_of_the_author(name, way):
    mechanism, x, want = CASES[name], {name: x.requires_grad_() for name, x in drawn().items()}, VALUES[name]

    def run(layout: Layout) -> torch.Tensor:
        if way == "forward":
            return mechanism(x["q"], x["k"], x["v"], layout, search=x["asked"])
        return mechanism.weights(x["q"], x["k"], layout, search=x["asked"]) @ x["v"]

    out = run(CAUSAL)
    near(out[:, :, ::7], want["out"])
    padded = Layout(causal=True, key_mask=(torch.arange(TOKENS) >= PADDED)[None])
    near(run(padded)[:, :, PADDED::7], want["padded"])
    names = ("asked", "q", "k", "v")
    weighing = wave(out.shape, 0.7).float()
    weighing[:, :, ROUNDED] = 0
    slopes = torch.autograd.grad((out * weighing).sum(), [x[name] for name in names])
    for name, slope in zip(names, slopes, strict=True):
        near(slope[:, :, ::9], want[f"d {name}"])


@pytest.mark.parametrize("name", CASES)
def test_decoding_of_the_author(name):
    mechanism, x = CASES[name], drawn()
    state, last = mechanism.start(1), slice(TOKENS - 1, None)
    for some in (slice(0, TOKENS - 1), last):
        given = (x[name][:, :, some] for name in ("q", "k", "v"))
        out, state = mechanism.extend(*given, state, search=x["asked"][:, :, some])
    near(out, VALUES[name]["decoded"])


def test_one_query_by_hand():
    """Of query 8, anchors are 8, 5 and 0; keys 5 and 0 are found best, with spans of 3 keys behind: 2 … 5 and 0."""
    mechanism = Superlinear(2, behind=1)
    k = torch.zeros(1, 1, 9, 1)
    k[0, 0, [0, 5, 4, 8], 0] = torch.tensor([math.log(2), math.log(6), 9, math.log(1.5)])  # 4 is no anchor
    q, asked, v = torch.zeros(3, 1, 1, 9, 1)
    asked[0, 0, 8] = 1
    v[0, 0, :, 0] = torch.tensor([8.0, 99, 1, 2, 4, 5, 99, 99, 99])
    out = mechanism(q, k, v, CAUSAL, search=asked)[0, 0, 8]
    torch.testing.assert_close(out, torch.tensor([(2 * 8 + 6 * (1 + 2 + 4 + 5) / 4) / 8]))
    a = mechanism.weights(q, k, CAUSAL, search=asked)[0, 0, 8]
    torch.testing.assert_close(a, torch.tensor([0.25, 0, *[0.1875] * 4, 0, 0, 0]))


def test_a_window_is_in_every_span_by_hand():
    """Window 3 of query 4: anchor 1 alone is left, with key 0 behind it; softmax is over all five keys."""
    mechanism = Superlinear(3, behind=0.1, window_index=1)
    q, asked, k = torch.zeros(3, 1, 1, 5, 2)
    a = mechanism.weights(q, k, CAUSAL, search=asked)[0, 0]
    torch.testing.assert_close(a[4], torch.full((5,), 0.2))
    torch.testing.assert_close(a[2], torch.tensor([1, 1, 1, 0, 0]) / 3)  # no anchor: the window alone
    torch.testing.assert_close(a[3], torch.full((5,), 0.25) * torch.tensor([1, 1, 1, 1, 0]))


def by_steps(q, k, i: int, mechanism: Superlinear) -> list[tuple[float, int]]:
    """The last anchors of query i of one head and what led to each, by a loop over the steps that the text tells of."""
    power, wide = mechanism.search_power, i + 1
    found = []
    for s in range(1, wide + 1):
        place = i - (math.floor(s ** (1 / power) + 1e-9) - 1)
        if place >= 0:
            found.append((float(q[i] @ k[place]), place))
    found = sorted(sorted(found, key=lambda each: each[1]), key=lambda each: -each[0])[: mechanism.spans]
    for step in range(1, mechanism.steps - 1):
        far = math.ceil(mechanism.behind * wide ** (1 - step * power))
        apart = max(math.ceil(wide ** (1 - (step + 1) * power)), 1)
        below = [(r + float(q[i] @ k[a - t]), a - t) for r, a in found for t in range(0, far + 1, apart) if a >= t]
        found = sorted(below, key=lambda each: -each[0])[: mechanism.spans]
    return found


@pytest.mark.parametrize("steps", [3, 4])
def test_more_steps_by_a_plain_definition(steps):
    mechanism, generator = Superlinear(2, steps, steps=steps), torch.Generator().manual_seed(0)
    q, asked, k, v = torch.randn(4, 1, 1, 83, 5, generator=generator, dtype=torch.float64)
    a = mechanism.weights(q, k, CAUSAL, search=asked)[0, 0]
    for i in (0, 1, 7, 40, 82):
        led, want = by_steps(asked[0, 0], k[0, 0], i, mechanism), torch.zeros(83, dtype=torch.float64)
        shares = torch.tensor([r for r, _ in led], dtype=torch.float64).softmax(0)
        for share, (_, anchor) in zip(shares, led, strict=True):
            first = max(anchor - math.ceil(steps * (i + 1) ** (1 / steps)), 0)
            span = slice(first, anchor + 1)
            want[span] += share * (q[0, 0, i] @ k[0, 0, span].mT / 5**0.5).softmax(0)
        torch.testing.assert_close(a[i], want)
    torch.testing.assert_close(mechanism(q, k, v, CAUSAL, search=asked), a @ v)


@pytest.mark.parametrize("tokens", [1, 5, 48])
def test_a_window_of_all_is_softmax_attention(tokens):
    """Window index 6 holds 48 keys."""
    q, k, v, asked = torch.randn(4, 1, 2, tokens, 3, generator=torch.Generator().manual_seed(1))
    out = Superlinear(window_index=6)(q, k, v, CAUSAL, search=asked)
    torch.testing.assert_close(out, Softmax()(q, k, v, CAUSAL))


def test_of_equal_scores_the_earlier_anchor():
    """All scores are equal: of the anchors 15, 12, 7, 0 of query 15 the first two are taken."""
    mechanism, here = Superlinear(2), torch.arange(16)
    anchors = mechanism.search(torch.ones(1, 2, 16, 3), torch.ones(1, 1, 16, 3), here)
    assert anchors[0, :, 15].tolist() == [[0, 7]] * 2
    assert anchors[0, :, 2].tolist() == [[2, -1]] * 2


@settings(max_examples=10, deadline=None)
@example(1, 4, (2.0, 0.0))
@given(st.integers(1, 300), st.integers(0, 4), st.sampled_from([(2.0, 0.0), (3.0, 1.0)]))
def test_every_position_is_a_candidate(tokens, window_index, factors):
    """Whatever a query is after, one anchor's span or the window holds it."""
    mechanism, here = Superlinear(1, *factors, window_index), torch.tensor([tokens - 1])
    anchors = here[:, None] - mechanism.distances(tokens)
    first, last = mechanism.bounds(anchors, here)
    place = torch.arange(tokens)
    held = ((place >= first[0, :, None]) & (place <= last[0, :, None])).any(0)
    assert bool((held | (place > tokens - 1 - mechanism.window)).all())


def test_a_long_call_is_its_tiles(monkeypatch):
    """Keys gathered for each query, in tiles of any size, are what the masked map says."""
    mechanism, generator = Superlinear(2, window_index=1), torch.Generator().manual_seed(3)
    q, asked = torch.randn(2, 1, 2, 601, 5, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 1, 1, 601, 5, generator=generator, dtype=torch.float64)
    want = mechanism.weights(q, k, CAUSAL, search=asked) @ v
    for tile in (601, 257):
        monkeypatch.setattr("regard.mechanisms.sparse.superlinear.TILE", tile)
        torch.testing.assert_close(mechanism(q, k, v, CAUSAL, search=asked), want, atol=1e-10, rtol=1e-10)


def test_the_search_learns_in_a_network():
    """The search's own map gets a gradient through the mixture alone."""
    model = LM(Config(11, 12, "mamba2, superlinear(spans=2)", heads=3), 0)
    model(torch.arange(29)[None] % 11).square().sum().backward()
    slopes = {name: x.grad for name, x in model.named_parameters() if ".search" in name}
    assert slopes
    assert all(slope is not None and slope.abs().max() > 0 for slope in slopes.values())


@pytest.mark.parametrize(
    "given",
    [
        {"spans": 0},
        {"behind": 0},
        {"ahead": -1},
        {"window_index": -1},
        {"search_power": 1.0},
        {"span_power": 0},
        {"steps": 1},
    ],
    ids=str,
)
def test_refusals(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}: got"):
        Superlinear(**given)
