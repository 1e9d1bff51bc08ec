"""What is counted where sparse attention is tried on needles and in SmolLM2: budgets, distances, who is said to win."""

import torch
from torch import nn

from regard.claims.delta_recall import ARMS, wins_half_back
from regard.claims.figures import Figures
from regard.claims.power_needle import DEPTH, by_distance, finds_at_any_distance, layers
from regard.claims.token_routes import WINDOWS, Drawn, most_need_little
from regard.core.build import build_text
from regard.core.layout import Layout
from regard.tasks.needles import Needle


def test_power_and_sliding_have_as_many_keys():
    """Of the last query; those before it see the window's last keys sooner than the powers 64 and 128. Only powers lead
    from the last query to everything in four layers."""
    seen = {}
    for arm in ("power", "sliding"):
        mechanism = build_text(layers(arm, 256).removesuffix(f"*{DEPTH}"))
        seen[arm] = mechanism.support(256, 256, Layout(causal=True))[0, 0].float()
    power, sliding = seen["power"], seen["sliding"]
    assert power[-1].sum() == sliding[-1].sum() == 32 + 3 + 1
    assert sliding.sum() - power.sum() == (64 - 33) + (128 - 34)
    reached = {arm: torch.linalg.matrix_power(one, DEPTH)[-1] > 0 for arm, one in seen.items()}
    assert reached["power"].all()
    assert reached["sliding"].nonzero()[:, 0].tolist() == [0, *range(255 - 4 * 34, 256)]


class Nearest(nn.Module):
    """Knows the answer to what stands in the last half alone."""

    def forward(self, ids):
        half = (ids.shape[1] + 1) // 2  # the last token is only predicted
        place = (ids == 0).int().argmax(1)
        value = ids.gather(1, place[:, None] + 2)[:, 0] * (place >= half)
        return nn.functional.one_hot(value, 32).float()[:, None].expand(-1, ids.shape[1], -1)


def test_needles_are_counted_by_their_distance():
    assert list(by_distance(Nearest(), Needle(vocabulary=32), 64, 48).values()) == [0, 0, 1, 1]


def test_drawn_queries_are_as_many_as_a_head_sends():
    drawn = Drawn(torch.tensor([0.0, 0.25, 1.0]), torch.Generator().manual_seed(0))
    routes = drawn(torch.zeros(4, 500, 8)).sigmoid() > 0.5
    none, some, every = routes.double().mean((0, 1)).tolist()
    assert (none, every) == (0, 1)
    assert abs(some - 0.25) < 0.05
    assert not torch.equal(routes[0], routes[1])


def test_who_wins():
    def power(worst, sliding):
        rows = [{"arm": arm} | dict.fromkeys(["quarter_0", "quarter_1", "quarter_2", "quarter_3"], share)
                for arm, share in (("power", worst), ("sliding", sliding), ("dense", 1.0))]  # fmt: skip
        return finds_at_any_distance(Figures(rows)).held

    assert power(0.96, 0.5)
    assert not power(0.94, 0.5)
    assert not power(0.96, 0.7)

    def delta(corrected, near):
        recall = dict.fromkeys(ARMS, 0.5) | {"dense": 1.0, "γ = 16": corrected}
        cosines = dict.fromkeys(ARMS, 0.9) | {"γ = 16": near}
        rows = [{"arm": arm, "recall": recall[arm], "cosine": cosines[arm], "tokens": 9.0} for arm in ARMS]
        return wins_half_back(Figures(rows)).held

    assert delta(0.8, 0.95)
    assert not delta(0.7, 0.95)
    assert not delta(0.8, 0.85)

    def routes(shares, after, drawn=2.2):
        given = zip(WINDOWS, shares, strict=True)
        told = {"before": 2.0, "after": after, "drawn": drawn, "here": 2.4}
        rows = [{"window": window, "share": share} | told for window, share in given]
        return most_need_little(Figures(rows)).held

    assert routes((0.2, 0.1), 2.019)
    assert not routes((0.21, 0.1), 2.0)
    assert not routes((0.2, 0.1), 2.03)
    assert not routes((0.2, 0.2), 2.0)
    assert not routes((0.2, 0.1), 2.019, drawn=2.019)
