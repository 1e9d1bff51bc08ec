"""Studies: each claim's null fails, seeds decide all, and the command tells figures, verdicts and plots."""

from dataclasses import replace
from unittest.mock import MagicMock, patch

import pytest
from typer.testing import CliRunner

from regard.claims.cells import Cells
from regard.claims.figures import Figures, Finding
from regard.claims.study import Studied, cells_in, exchanged, quick_of, study, summed_up, takes_model
from regard.cli import app
from regard.cli.study import across_field, draw, lines, panel, titled
from regard.core.atlas import entries, find
from regard.experiments.run import run

SLOW = {
    *(
        *("captions.bottleneck", "abrupt.emerges", "abrupt.traded", "abrupt.reduced", "joint.read"),
        *("seeing.answered", "taught.digits_taught"),
        "averages.sizes",
        "features.risks(target='mean')",
        "features.risks(target='correlation')",
        "limits.selected",
    ),
    *("first_token.spread", "first_token.sinks", "statements.told", "snapping.trained", "snapping.ratios"),
    *(
        "memorisation.trained",
        "stacked.curricula",
        "stacked.emergence",
        "snapping.shared",
        "averages.matched",
        "regression.preconditioned",
    ),
    *("survey.best_of(model='smollm2')", "topics.embedded", "topics.attended"),
}
"""Whose quick looks take more than a second or two."""
CLAIMS = [
    pytest.param(
        entry, claim, id=f"{entry.name}-{claim.cells}", marks=[pytest.mark.slow] if claim.cells in SLOW else []
    )
    for entry in entries(kind="study")
    for claim in entry.claims
    if isinstance(cells_in(claim), Cells) and cells_in(claim).nulls is not None
]
WITHOUT = {
    **dict.fromkeys(("bottleneck", "kinetics", "fusemax", "cab"), "a cost model or a benchmark"),
    **dict.fromkeys(("dynamical_systems", "posterior", "layer_norm_parts", "factored_wave_function"), "equalities"),
    **dict.fromkeys(("pavlovian", "sparse_distributed_memory"), "a curve that is known"),
    **dict.fromkeys(
        ("fixed_head_size", "rank_tradeoff", "mimetic", "superiority_of_softmax"), "the arm that must fail is measured"
    ),
}
"""Studies that name no null, and why."""


@pytest.mark.parametrize(("entry", "claim"), CLAIMS)
def test_the_null_fails_and_seeds_decide(entry, claim):
    one = replace(entry, claims=(claim,))
    (first,), (second,) = (study(one, quick=True) for _ in range(2))
    assert first.null is not None
    assert not first.null.held, first.null.figure
    assert first.sound
    assert first.figures.rows == second.figures.rows
    assert first.table()


def test_what_is_slow_is_a_claim_of_a_study():
    assert {claim.cells for entry in entries(kind="study") for claim in entry.claims} >= SLOW


def test_every_study_names_a_null_or_is_known_to_have_none():
    without = {
        entry.name
        for entry in entries(kind="study")
        if not any(isinstance(cells_in(c), Cells) and cells_in(c).nulls is not None for c in entry.claims)
    }
    assert without == set(WITHOUT)


def test_every_study_that_trains_or_takes_times_names_a_quick_look():
    """Its cells are then those of fewer seeds, sizes or steps; those of arithmetic alone need none."""
    lasting = ("steps", "rounds")
    missing = [
        f"{entry.name}: {claim.cells}"
        for entry in entries(kind="study")
        for claim in entry.claims
        if isinstance(cells := cells_in(claim), Cells)
        and any(name in cells.values for name in lasting)
        and not cells.fewer
    ]
    assert not missing


def test_the_command_prints_figures_verdicts_and_draws(tmp_path):
    target = tmp_path / "figure.png"
    result = CliRunner().invoke(app, ["study", "memorisation", "--quick", "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert "known" in result.output
    assert "holds: exactly H (n − 1) + 1 in 2 of 2 cases" in result.output
    assert "without its cause it does not hold, as it must not" in result.output
    assert target.read_bytes().startswith(b"\x89PNG")


def test_a_null_that_holds_is_not_sound():
    found, *_ = study(find("memorisation"), quick=True)
    assert not Studied(found.claim, found.figures, found.finding, found.finding).sound


def test_a_model_is_only_for_claims_about_models():
    assert [takes_model(claim) for claim in find("softmax_limits").claims] == [False, True]
    with pytest.raises(TypeError, match=r"^--model: got 'tiny', want nothing"):
        study(find("memorisation"), quick=True, model="tiny")
    with pytest.raises(TypeError, match=r"^colour: got no argument of these cells"):
        cells_in(find("memorisation").claims[0]).where(colour=[1])


@pytest.mark.parametrize(
    ("values", "want"), [([1.0, 3.0], "2 ± 12.71"), ([2], "2"), (["3.1", "3.1", "4.0"], "3.1, 4.0")]
)
def test_figures_are_summed_up_and_texts_listed(values, want):
    assert summed_up(values) == want


def rows(**fields):
    return [
        {"fields": ["reads", "strong", "seed"], "right": right, **fields, "seed": seed}
        for seed, right in ((0, 0.2), (1, 0.6))
    ]


def test_plots_know_numbers_from_words_and_draw_what_is_shared_once(tmp_path):
    """Yes and no are no numbers; means and Student's interval of two seeds, 12.706 · 0.2."""
    claim = find("memorisation").claims[0]
    found = Figures([*rows(reads="start", strong=False), *rows(reads="start", strong=True)])
    part = Studied(claim, found, Finding("", True), None)
    assert across_field(part) == "strong"
    ((label, points),) = lines(part, "right").items()
    assert label == ""
    assert [x for x, _, _ in points] == [False, True]
    assert points[0][1:] == pytest.approx((0.4, 12.706 * 0.2))
    axes = MagicMock()
    panel(axes, part, "right", "right")
    assert axes.set_xticks.call_args.args == (range(2), ["False", "True"])
    assert axes.errorbar.call_args.kwargs["linestyle"] == "none"
    figure = MagicMock()
    figure.savefig.side_effect = lambda path, **_: path.write_bytes(b"drawn")
    with patch("matplotlib.figure.Figure", return_value=figure):
        draw([part, part], tmp_path / "figure.png")
    assert figure.add_subplot.call_count == 1
    assert (tmp_path / "figure.png").read_bytes() == b"drawn"
    other = Figures([{**row, "function": "captions.other"} for row in found.rows])
    both = [part, Studied(claim, other, Finding("", True), None)]
    assert [titled("right", each, both) for each in both] == ["right", "right (other)"]


def test_a_quick_look_keeps_what_a_claim_is_about_and_says_what_it_left_out():
    first, second = (quick_of(cells_in(claim)).values["model"] for claim in find("head_survey").claims)
    assert (first, second) == (("smollm2",), ("tiny",))
    found, *_ = study(find("memorisation"), quick=True)
    assert found.instead == "n 8 instead of 4, 8, 16; count 2, 4 instead of 1, 2, 4, 8; seed 0 instead of 0, 1, 2"
    whole = cells_in(find("memorisation").claims[0])
    assert exchanged(whole, whole) == ""


def test_what_two_claims_share_is_measured_once(monkeypatch):
    asked = []

    def noted(cells, *given, **named):
        asked.extend(cell.key for cell in cells)
        return run(cells, *given, **named)

    monkeypatch.setattr("regard.claims.study.run", noted)
    monotone, bounded, _ = study(find("localist"), quick=True)
    assert monotone.keys == bounded.keys
    assert len(asked) == len(set(asked))
