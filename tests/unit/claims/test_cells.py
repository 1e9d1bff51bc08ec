"""Every cell that trains or takes times runs at its smallest, and the code that judges it reads its figures."""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module

import pytest
from torch import nn

from regard.claims import dual, extend, long_texts, neighborhood, planning, probabilistic, taylor, theory
from regard.claims.cells import OWN, Measured, measured
from regard.claims.declared import cells_of, finding_of
from regard.claims.figures import Figures, Finding
from regard.core.atlas import everything
from regard.experiments.timing import interleaved
from regard.networks import LM, Config

SLOW = {
    "outlines.found": "finds boundaries in images of 56 × 56, 9 s a model",
    "clusters.language": "two models on held-out windows of 256 characters, several seconds",
    "flux.routed_by": "130 batches of text and recall, a quarter of a minute",
    "infinitevl.distilled": "three models on 16,384 tokens of held-out text, a quarter of a minute",
    "agreement.followed": "flow through six layers for forty sentences, 2 s",
    "beginnings.": "twelve layers on texts of 512 characters, 2 s a model",
    "by_heart.": "forgets for thirty steps afterwards, twice over, 11 s a seed",
    "binding.of_scenes": "sixteen probes of all pairs of patches, a quarter of a minute",
    "relevance.of_scenes": "two thousand scenes, and saliency of 128, 4 s",
    "context_awareness.tuned": "how much 200 texts depend on their contexts, 6 s",
    "contrast.told_apart": "answers of two tasks without seven choices of heads, 8 s",
    "decorrelation.tuned": "SmolLM2 learns from a batch and is watched over eight texts, a minute",
    "equal_heads.masked": "takes 24 heads out in turn, 5 s a way",
    "kl_layers.selected": "tunes eight students of eight layers, 10 s",
    "rhythm.reinforced": "learns for fifty steps first, 4 s a way",
    "focus.directed": "SmolLM2 answers sixty questions under five edits, minutes",
    "abrupt.traded": "three networks on 4,096 unseen classes, 3 s",
    "anticipation.told": "six networks of 1,000 clips, 3 s",
    "captions.": "writes captions of 256 scenes, 2 s a model",
    "events.trained": "finds spans in unseen streams for every threshold, 2 s a model",
    "experts.routed": "reads held-out source with three models, 6 s",
    "graph_texts.trained": "a pool of 1,536 graphs for each model, 3 s each",
    "groups_then_hitters.decoded": "128 steps of sixteen texts under three policies, 6 s",
    "hybrids.hymba_recall": "three layers of state spaces on 256 texts, 19 s a model",
    "hybrids.simba_series": "forecasts 512 series, 4 s a model",
    "language.on_pages": "reads unseen pages after training, 3 s",
    "language.shortcuts": "four layers on held-out text, 2 s",
    "language.variants": "26 models, 5 s",
    "latents.probes": "features of MiniLM for a thousand texts, a minute",
    "layers.deletions": "deletes every token of 256 texts in turn, half a minute",
    "long_texts.nested_lists": "draws 6,000 nested lists, 4 s a model",
    "monotone.segments": "writes sequences of four times the length, every way that is kept, a minute",
    "monotone.written": "writes sequences of four times the length, 5 s a model",
    "multi_token.toy_task": "answers on 1,000 texts, 4 s",
    "parsing.brackets": "parses 300 sentences without each head in turn, 3 s a model",
    "poses.lifted": "six networks on 2,000 poses, 4 s",
    "positional.network": "sorts lists of ten times the size, 4 s",
    "projections.on_long_texts": "tells packages of 3,000 texts, 20 s",
    "projections.texts_of": "tells packages of 3,000 texts, 5 s",
    "projections.gated_and_fast": "as small_lm.beside",
    "seeing.answered": "1,500 scenes, looked at four times, 4 s",
    "norm_parts.in_language": "reads held-out text, finds hulls of sixteen texts, 2 s a way",
    "small_lm.beside": "a second a model; projections.gated_models has such models too",
    "small_lm.tuned": "as small_lm.beside",
    "power_needle.": "three models of four layers look for needles in 256 tokens, half a minute",
    "statements.told": "MiniLM reads 320 statements, 6 s",
    "thoughts_for_tokens.converted": "three models of eight layers read held-out text and write, 8 s",
    "token_routes.": "SmolLM2 learns from a batch with two windows, minutes",
    "titans.joined": "a thousand tokens by three forms of memory, a minute",
    "titans.mechanism": "a thousand tokens by memory and windows, several seconds",
    "tracking.": "words of 128 letters by networks of recurrence and attention, several seconds",
    "superlinear.far_needle": "four layers look for needles in 4,096 tokens, half a minute",
    "superlinear.needle": "two layers look for needles in 512 tokens, 5 s",
    "taught.digits_taught": "measures 597 maps of gaze one by one, 2 s",
    "taylor.terms": "states of 64² numbers over 256 characters, 9 s",
}
"""Cells that take long even with one step, and why."""
ELSEWHERE = {"extend.tuned": "with sizes of its own below"}


def trainings():
    """Claims all of whose cells train, as pytest's parameters."""
    for entry in everything().values():
        for claim in entry.claims:
            cells = cells_of(claim)
            known = [cell for cell in cells if isinstance(cell, Measured) and "steps" in cell.fields]
            if known and len(known) == len(cells) and claim.cells not in ELSEWHERE:
                marks = [pytest.mark.slow] if any(claim.cells.startswith(name) for name in SLOW) else []
                yield pytest.param(claim, id=f"{entry.name}-{claim.cells}-{claim.holds}", marks=marks)


@cache
def small(function, given):
    """What a cell gives after one step, whatever the seed."""
    module, name = f"regard.claims.{function}".rsplit(".", 1)
    figures = getattr(import_module(module), name).measure(**dict(given))
    assert not OWN & figures.keys(), "no row keeps a figure that is called so"
    return figures


def judged(rows, judge):
    """What is said of figures, all of which are numbers."""
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert all(map(math.isfinite, figures))
    found = judge(Figures(rows))
    assert isinstance(found, Finding)
    assert found.figure
    return found


@pytest.mark.parametrize("claim", list(trainings()))
def test_a_training_gives_figures_that_are_judged(claim):
    rows = []
    for cell in cells_of(claim):
        given = dict(cell.given) | {"steps": 1}
        given |= {"seed": 1} if "seed" in given else {}
        rows.append({**cell.fields, **small(cell.function, tuple(given.items()))})
    judged(rows, lambda figures: finding_of(claim, figures))


def test_slow_cells_are_cells():
    named = {claim.cells for entry in everything().values() for claim in entry.claims}
    for name in [*SLOW, *ELSEWHERE]:
        assert any(cells.startswith(name) for cells in named), name


def rows_of(cells, **small_ones):
    return [{**cell.fields, **cells.measure(**dict(cell.given) | small_ones)} for cell in cells]


@pytest.mark.slow
def test_tuning_for_longer_texts(monkeypatch):
    arms = {name: text and text.replace("2048", "16") for name, text in extend.ARMS.items()}
    for name, value in {"LENGTH": 64, "TESTED": 256, "ARMS": arms}.items():
        monkeypatch.setattr(extend, name, value)
    extend.model_and_texts.cache_clear()
    judged(rows_of(extend.tuned, steps=1), extend.keeps_more)
    extend.model_and_texts.cache_clear()


def test_samples_until_pairs_are_told(monkeypatch):
    monkeypatch.setattr(dual, "MOST", 10 * dual.SIZE)
    assert not judged(rows_of(dual.samples.where(seed=[0])), dual.takes_half).held


def test_clicks_and_waves():
    judged(rows_of(probabilistic.clicked), probabilistic.segments_better)
    judged(rows_of(theory.two_by_two), theory.finds_the_ground_state)


def test_leaks(monkeypatch):
    assert judged(rows_of(planning.leaks), planning.nothing_leaks).held
    monkeypatch.setattr(planning.cab, "leak", lambda mechanism: 1e-3)
    assert not judged(rows_of(planning.leaks), planning.nothing_leaks).held


@pytest.mark.slow
def test_times_of_neighbourhoods(monkeypatch):
    monkeypatch.setattr(neighborhood, "interleaved", lambda *given, seconds: interleaved(*given, seconds=0))
    draw = neighborhood.draw
    monkeypatch.setattr(neighborhood, "draw", lambda grid, heads=2, dim=8, dtype=None: draw(grid, heads, 4, dtype))
    speeds = rows_of(neighborhood.speed)
    judged(speeds, neighborhood.is_fast)
    judged(speeds, neighborhood.is_bounded)


@pytest.mark.slow
def test_growth_of_neighbourhoods(monkeypatch):
    monkeypatch.setattr(neighborhood, "interleaved", lambda *given, seconds: interleaved(*given, seconds=0))
    assert all(row["ratio"] > 0 for row in rows_of(neighborhood.growth))


def test_times_of_linear_layers(monkeypatch):
    monkeypatch.setattr(long_texts, "LENGTHS", (32, 64))
    judged(rows_of(long_texts.lightning_time), long_texts.within_ten_percent)
    assert all(row["ratio"] > 0 for row in rows_of(taylor.doubling, order=1))


def test_predicted_steps(monkeypatch):
    def reference() -> nn.Module:
        return LM(Config(vocabulary=32, width=16, layers="softmax*2", heads=2), seed=0).eval()

    monkeypatch.setattr(planning, "reference", reference)
    assert all(row["error"] >= 0 for row in rows_of(planning.calibrated))


def test_arguments_of_cells_do_not_hide_what_a_row_says_itself():
    with pytest.raises(ValueError, match="key: got an argument of cells, want another name"):
        measured(key=(1, 2))(lambda key: {})
