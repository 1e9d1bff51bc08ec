"""Hierarchically pruned attention: stages by a plain definition, bounds of halves, what is kept, dense layers."""

from itertools import pairwise

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.hip import HierarchicallyPruned
from regard.patterns.choice import Rows
from regard.routers.stages import Stages
from regard.routers.tree import Halves, over, ranges

CAUSAL = Layout(causal=True)
STAGED = {"block": 2, "keep": 3, "near": 1, "sinks": 1, "stages": ((16, 32), (4, 16))}


def drawn(tokens: int, heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return list(torch.randn(3, 1, heads, tokens, 5, generator=generator, dtype=torch.float64))


def by_definition(q: torch.Tensor, k: torch.Tensor, i: int) -> list[int]:
    """The blocks of 2 keys that query i of one head ends with: chunks of 16, two of them; of 4, four; of 2, three."""
    first, last = 2, max(i // 2 - 1, 0) * 2
    chunks = [(low, min(low + 16, last)) for low in range(first, last, 16)]
    for size, kept, following in ((16, 2, 4), (4, 4, 2), (2, 3, None)):
        scored = []
        for low, high in chunks:
            a, b, most, steps = low, high, -torch.inf, 1
            while size >> steps >= 1:
                steps += 1
            for _ in range(steps):
                middle = (a + b) // 2
                left, right = (float(q[i] @ k[place]) for place in ((a + middle) // 2, (middle + b) // 2))
                most = max(most, left, right)
                a, b = (a, middle) if left > right else (middle, b)
            scored.append((-most, low))
        best = sorted(low for _, low in sorted(scored)[:kept])
        step = following or size
        chunks = [
            (part, min(part + step, last)) for low in best for part in range(low, low + size, step) if part < last
        ]
    return [low // 2 for low, _ in chunks]


def test_stages_by_a_plain_definition():
    q, k, _ = drawn(83)
    found = HierarchicallyPruned(**STAGED).choice(q, k, True).mask
    for head in range(2):
        for i in range(83):
            wanted = {*by_definition(q[0, head], k[0, head], i), 0, i // 2, max(i // 2 - 1, 0)}
            assert set(found[0, head, i].nonzero()[:, 0].tolist()) == wanted, (head, i)


def test_a_chunk_by_hand():
    """Of keys 0 … 7 the middles of the halves are 2 and 6, then of the right one's 5 and 7, then 6 or 7 of 6 … 7."""
    scores = torch.tensor([9.0, 9, 1, 9, 9, 3, 2, 5])
    seen = []

    def score_at(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(int(tokens))
        return scores[tokens]

    found = Stages(((16, 16),)).score(score_at, torch.tensor([0]), torch.tensor([8]), 8)
    assert seen == [2, 6, 5, 7, 6, 7, 7, 7]
    assert found.tolist() == [5]  # the best that is met, though keys of 9 are in the chunk


def test_halves_by_their_bounds():
    """Ranges of any length, and a walk that finds the one large key that no chunk begins with."""
    bounds = torch.randn(1, 1, 13, 6, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([[0, 3, 5, 12, 0]]), torch.tensor([[13, 4, 12, 13, 8]])
    found = over(ranges(bounds), low[None, None], high[None, None])[0, 0, 0]
    for part, (a, b) in zip(found, zip(low[0].tolist(), high[0].tolist(), strict=True), strict=True):
        torch.testing.assert_close(part[:3], bounds[0, 0, a:b, :3].amax(0))
        torch.testing.assert_close(part[3:], bounds[0, 0, a:b, 3:].amin(0))
    k = torch.zeros(1, 1, 64, 1)
    k[0, 0, 27] = 5.0
    q, rows = torch.ones(1, 1, 1, 1), Rows(torch.tensor([[63]]), 64, 2)
    for bound in (False, True):
        assert bool(Halves(2, 2, 0, bound=bound)(q, k, rows).mask[0, 0, 0, 13]) == bound


def test_what_stages_found_serves_for_some_steps():
    """Refreshed every 4 and 2 steps: at step 0 all, at 1 nothing, at 2 the last stage, at 3 nothing, at 4 all."""
    q, k, v = drawn(70)
    mechanism = HierarchicallyPruned(**(STAGED | {"stages": ((16, 32),), "refresh": (4, 2)}))
    fresh = HierarchicallyPruned(**(STAGED | {"stages": ((16, 32),)}))
    _, state = mechanism.extend(q[:, :, :60], k[:, :, :60], v[:, :, :60], mechanism.start(1))
    assert not state.lists
    lists, same = [], []
    for t in range(60, 70):
        one, upto = slice(t, t + 1), slice(0, t + 1)
        out, state = mechanism.extend(q[:, :, one], k[:, :, one], v[:, :, one], state)
        lists.append(state.lists)
        same.append(torch.allclose(out, fresh(q[:, :, one], k[:, :, upto], v[:, :, upto], CAUSAL)))
    for step, (before, after) in enumerate(pairwise(lists), 1):
        kept = [bool(torch.equal(a, b)) for a, b in zip(before, after, strict=True)]
        assert kept == [step % 4 != 0, step % 2 != 0], step
    assert same[::4] == [True] * 3  # at 0, 4 and 8 all is anew
    assert not all(same)


def test_a_walk_is_kept_for_some_steps():
    q, k, v = drawn(40)
    mechanism, fresh = HierarchicallyPruned(2, 3, 1, refresh=(3,)), HierarchicallyPruned(2, 3, 1)
    _, state = mechanism.extend(q[:, :, :30], k[:, :, :30], v[:, :, :30], mechanism.start(1))
    same = []
    for t in range(30, 40):
        one, upto = slice(t, t + 1), slice(0, t + 1)
        out, state = mechanism.extend(q[:, :, one], k[:, :, one], v[:, :, one], state)
        same.append(torch.allclose(out, fresh(q[:, :, one], k[:, :, upto], v[:, :, upto], CAUSAL)))
    assert same[::3] == [True] * 4
    assert not all(same)


def test_dense_layers():
    q, k, v = drawn(50)
    want = Softmax()(q, k, v, CAUSAL)
    for layer in range(3):
        mechanism = HierarchicallyPruned(2, 3, 1, dense=(0, 2), layer_index=layer)
        assert torch.allclose(mechanism(q, k, v, CAUSAL), want) == (layer != 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stages": ((16, 32),), "bound": True}, "bound"),
        ({"refresh": (2, 2)}, "refresh"),
        ({"refresh": (0,)}, "refresh"),
        ({"stages": ((16, 32), (3, 9))}, "stages"),
        ({"stages": ((16, 8),)}, "stages"),
        ({"sinks": -1}, "keep, near, sinks"),
    ],
    ids=str,
)
def test_refusals(given, said):
    with pytest.raises(ValueError, match=f"{said}: got"):
        HierarchicallyPruned(**given)
