"""Quality cells: equal models, the same data, honest intervals."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

import regard
from regard.compare.quality import PRESETS, QualityCell, answered, plan, quality_table, score, scores
from regard.compare.task_settings import TRIALS, task_setting
from regard.core.mechanism import Mechanism
from regard.networks.benchmark import BACKBONES, PATTERNS, BenchmarkNetwork

QUICK = [name for name in TRIALS if name not in ("text", "retrieval", "lm")]


LARGE = dict.fromkeys(("flux", "nsa"), "parameters: got .*all else has these already")
"""Mechanisms whose own networks are larger than the gated networks of so small a model."""


def mechanisms() -> list[str]:
    return [e.name for e in regard.entries() if isinstance(e.thing, type) and issubclass(e.thing, Mechanism)]


@pytest.mark.parametrize("name", mechanisms())
def test_models_of_all_mechanisms_have_the_same_parameters_to_one_percent(name):
    given = task_setting("recall" if regard.find(name).thing.examples()[0].mechanism.traits.causal else "masked_recall")
    plain = QualityCell("softmax", "recall").network(given).parameter_count
    if name in LARGE:
        with pytest.raises(ValueError, match=LARGE[name]):
            QualityCell(name, "recall").network(given)
        return
    assert abs(QualityCell(name, "recall").network(given).parameter_count - plain) <= 0.01 * plain


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_task_runs_in_its_pattern(name, backbone):
    given = task_setting(name)
    network = QualityCell("softmax", name, preset="smoke", backbone=backbone).network(given)
    logits, targets = answered(network, given.task, given, Generator().manual_seed(0), 3)
    assert logits.shape == (len(targets), given.vocabulary)
    assert targets.min() >= 0
    assert given.pattern in PATTERNS


def test_answers_are_hidden_from_two_sided_models():
    given, seen = task_setting("masked_recall"), []

    def model(ids):
        seen.append(ids)
        return torch.zeros(*ids.shape, given.vocabulary)

    _, targets = answered(model, given.task, given, Generator().manual_seed(0), 3)
    assert (seen[0] == given.vocabulary - 1).sum() == len(targets)


def test_a_cell_is_the_same_every_time_and_another_with_another_seed():
    first, second = (dict(QualityCell("lightning", "recall", 3, "smoke").run()) for _ in range(2))
    other = dict(QualityCell("lightning", "recall", 4, "smoke").run())
    for figures in (first, second, other):
        assert figures.pop("seconds") > 0
    assert first == second != other
    assert first["tokens"] == 40 * 16 * 64
    assert first["answers"] == PRESETS["smoke"].tests * 8


def row(mechanism: str, accuracy: float, seed: int, answers: int = 400) -> dict:
    found = QualityCell(mechanism, "recall", seed).fields
    return found | {
        "kind": "quality",
        "accuracy": accuracy,
        "answers": answers,
        "seconds": 2.0,
        "tokens": 10**6,
        "chance": 0.1,
    }


def test_intervals_are_students_over_seeds():
    found = score([row("softmax", value, seed) for seed, value in enumerate((0.5, 0.6, 0.7))])
    assert found.mean == pytest.approx(0.6)
    assert found.high - found.mean == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert (found.seeds, found.cost) == (3, pytest.approx(2.0))


def test_a_single_seed_says_that_its_interval_is_of_answers_only():
    found = score([row("softmax", 0.5, 0)])
    assert found.high - found.mean == pytest.approx(1.96 * (0.25 / 400) ** 0.5)
    assert "of its answers only" in str(quality_table([row("softmax", 0.5, 0)]).title)
    assert "only" not in str(quality_table([row("softmax", 0.5, 0), row("softmax", 0.6, 1)]).title)
    assert quality_table([]) is None


def test_scores_keep_tasks_and_mechanisms_apart():
    found = scores([row("softmax", 0.9, 0), row("gla", 0.4, 0), row("softmax", 0.7, 1)])
    assert {key[3]: value.mean for key, value in found.items()} == {"softmax": pytest.approx(0.8), "gla": 0.4}


def test_what_cannot_attend_in_a_pattern_is_left_out_and_said():
    said: list[str] = []
    cells = plan(["softmax", "window(size=5)", "deltanet", "efficient"], "lookup, recall", 2, "smoke", 1, said.append)
    assert {(cell.mechanism, cell.task) for cell in cells} == {
        *(("softmax", "lookup"), ("efficient", "lookup"), ("softmax", "recall")),
        *(("window(size=5)", "recall"), ("deltanet", "recall")),
    }
    assert len(said) == 3
    assert "window(size=5) on lookup" in said[0]


def test_tasks_take_arguments():
    given = task_setting("recall(pairs=4, vocabulary=32, power=0.5, length=40)")
    assert (given.length, given.vocabulary, given.chance, given.task.power) == (40, 32, 1 / 16, 0.5)
    assert task_setting("masked_recall(pairs=4, vocabulary=32)").vocabulary == 33
    cells = plan(["softmax"], "recall(pairs=2, length=16), copy", 1, "smoke", 1, print)
    assert [cell.task for cell in cells] == ["recall(pairs=2, length=16)", "copy"]
    assert cells[0].run()["length"] == 16
    with pytest.raises(TypeError, match="size: got an unknown argument, want one of recall's: length, pairs"):
        task_setting("recall(size=3)")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="preset: got 'huge', want one of smoke"):
        QualityCell("softmax", "recall", preset="huge")
    with pytest.raises(ValueError, match="task: got 'chess'"):
        QualityCell("softmax", "chess")
    network = QualityCell("softmax", "lookup").network(task_setting("lookup"))
    with pytest.raises(ValueError, match="context: got None"):
        network(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="pattern, backbone: got 'sideways'"):
        BenchmarkNetwork(network.config, "sideways")


@pytest.mark.slow
def test_softmax_learns_recall_and_the_needle_and_a_short_window_does_not():
    """Softmax attention learns recall and needle to 99% in 1,000 steps; a window of 8 tokens stays below 60%."""
    figures = {}
    for task in ("recall", "needle"):
        for name in ("softmax", "window(size=8)"):
            figures[task, name] = QualityCell(name, task).run()["accuracy"]
    assert min(figures[task, "softmax"] for task in ("recall", "needle")) > 0.99
    assert max(figures[task, "window(size=8)"] for task in ("recall", "needle")) < 0.6
