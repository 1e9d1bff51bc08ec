"""The loop on a model of a few hundred weights: a run stopped and resumed equals one that was not, bit for bit."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from regard.tasks import Copy, Induction
from regard.train.tiny.loop import Budget, Trainer
from regard.train.tiny.make import config
from regard.train.tiny.stages import TINY, Stage

STAGES = (
    Stage("first", {"copy": 1}, {17: 1}, share=0.5, symbols=5, tokens=3 * 17),
    Stage("second", {"copy": 0.5, "induction": 0.5}, {11: 0.5, 23: 0.5}, 0.5, 13, tokens=69, rate=(2e-3, 1e-4)),
)
BUDGET = Budget(tokens=1300)


def sources(stage):
    return {"copy": Copy(range(1, 1 + stage.symbols), (2, 5), 0), "induction": Induction(range(1, 14), 0)}


def trainer(folder, *, stages=STAGES, seed=0, budget=BUDGET):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(vocabulary=17, layers=1, width=16, heads=2))
    return Trainer(model, stages, sources, budget, folder, seed)


def log(folder):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run()
    for steps in (7, 5, None):
        parts = trainer(tmp_path / "parts")
        parts.run(steps)
    assert parts.progress.step == whole.progress.step > 12
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, parts.model.state_dict()[name]), name
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_steps_after_the_last_checkpoint_are_taken_again(tmp_path):
    killed = trainer(tmp_path)
    killed.run(5)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "kept.pt")
    killed.run(3)
    (tmp_path / "kept.pt").rename(tmp_path / "checkpoint.pt")
    trainer(tmp_path).run()
    assert [line["step"] for line in log(tmp_path)] == list(range(1, len(log(tmp_path)) + 1))


def test_stages_follow_one_another_by_their_shares_of_the_budget(tmp_path):
    trainer(tmp_path).run()
    tokens = [line["tokens"] for line in log(tmp_path) if line["stage"] == "first"]
    assert max(tokens) == 663  # the first multiple of 51 at or beyond half of 1,300
    assert log(tmp_path)[-1]["tokens"] >= 1300
    assert {line["length"] for line in log(tmp_path) if line["stage"] == "second"} == {11, 23}


def test_a_stage_ends_at_its_accuracy(tmp_path):
    easy = Stage("easy", {"copy": 1}, {17: 1}, share=0.9, symbols=2, tokens=51, until=0.01)
    trainer(tmp_path, stages=(easy, STAGES[1])).run()
    assert 1 <= sum(line["stage"] == "easy" for line in log(tmp_path)) < 20


def test_the_rate_warms_up_and_goes_from_a_stage_s_first_to_its_last(tmp_path):
    trainer(tmp_path).run()
    rates = [line["rate"] for line in log(tmp_path)]
    assert rates[0] == pytest.approx(3e-3 / 50)
    assert rates[12] == pytest.approx(3e-3 * 13 / 50)
    assert rates[-1] < rates[-2]


def test_minutes_end_a_run_too(tmp_path):
    budget = Budget(minutes=1e-3)
    assert trainer(tmp_path, budget=budget).run().seconds >= 0.06
    assert budget.clock(0, 0.03) == pytest.approx(0.5)


def test_learning_happens(tmp_path):
    stage = Stage("copy", {"copy": 1}, {17: 1}, share=1, symbols=3, tokens=17 * 13)
    trainer(tmp_path, stages=(stage,), budget=Budget(tokens=17 * 13 * 120)).run()
    losses = [line["loss"] for line in log(tmp_path)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_another_recipe_does_not_go_on_from_this_checkpoint(tmp_path):
    trainer(tmp_path).run(2)
    with pytest.raises(
        ValueError, match=r"folder: got .*another recipe or seed, want the same one, or an empty folder"
    ):
        trainer(tmp_path, seed=3)


def test_a_budget_needs_a_limit():
    with pytest.raises(
        ValueError, match="budget: got tokens None and minutes None, want at least one of them, above 0"
    ):
        Budget()
    with pytest.raises(ValueError, match="got tokens 0"):
        Budget(tokens=0)


def test_a_mixture_names_known_sources(tmp_path):
    stage = Stage("odd", {"cpoy": 1}, {17: 1}, share=1, symbols=3)
    with pytest.raises(
        ValueError, match=r"Stage 'odd': mixture: got \['cpoy'\], want names of \['copy', 'induction'\]"
    ):
        trainer(tmp_path, stages=(stage,)).run()


@pytest.mark.parametrize(
    ("mixture", "lengths", "message"),
    [
        ({}, {17: 1}, r"Stage 's': mixture: got \{\}, want shares >= 0 with a sum > 0"),
        ({"copy": 1}, {17: -1}, r"Stage 's': lengths: got \{17: -1\}"),
        ({"copy": 1}, {5003: 1}, "Stage 's': tokens: got 4096, want at least its longest length 5003"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(mixture, lengths, message):
    with pytest.raises(ValueError, match=message):
        Stage("s", mixture, lengths, share=1, symbols=3)


def test_copying_is_never_dropped():
    assert all("copy" in stage.mixture for stage in TINY)
    assert max(TINY[-1].lengths) == 2048
