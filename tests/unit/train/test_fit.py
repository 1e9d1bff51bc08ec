"""The general loop: it learns, it is stopped and goes on, and it says what it cannot do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from regard.cli import app
from regard.networks import LM, Config
from regard.tasks import Copy
from regard.train.fit import Recipe, fit
from regard.train.lm import accuracy_of, train_lm

CONFIG = Config(7, width=16, layers="softmax, lightning", heads=2)
TASK = Copy(range(7), (2, 4))


def trained(folder, steps: int = 12, **changes):
    return train_lm(CONFIG, TASK, 13, 5, Recipe(steps, **changes), folder)


def test_the_rate_rises_and_falls():
    recipe = Recipe(100, rate=1.0, warm_up=0.1)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_training_ends_where_it_is_told_to_and_steps_say_their_gradient():
    seen = []

    def until(step):
        seen.append(step)
        return step.number == 5

    def loss(model, generator):
        return (model.weight * 3).sum()

    fit(torch.nn.Linear(4, 1, bias=False), loss, Recipe(12), until=until)
    assert [step.number for step in seen] == [1, 2, 3, 4, 5]
    assert all(step.norm == pytest.approx(6) for step in seen)  # four weights of gradient 3, before the clip to 1


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = trained(tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 7:
            raise StoppedError

    model, folder = LM(CONFIG, seed=0), tmp_path / "parts"

    def loss(ready, generator):
        from regard.train.lm import predicted

        return torch.nn.functional.cross_entropy(*predicted(ready, TASK, 13, 5, generator))

    with pytest.raises(StoppedError):
        fit(model, loss, Recipe(12), folder, every=0.0, report=stop)
    again = trained(folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    lines = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 13))
    loaded = LM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), loaded.parameters(), strict=True))


SCRIPT = """
import sys
from pathlib import Path
from regard.networks import LM, Config
from regard.tasks import Copy
from regard.train.fit import Recipe, fit
from regard.train.lm import predicted
import torch
def loss(ready, generator):
    return torch.nn.functional.cross_entropy(*predicted(ready, Copy(range(7), (2, 4)), 13, 5, generator))
def report(step, value):
    print(step, flush=True)
    if step == 79 and sys.argv[1] == "endless":
        sys.stdin.read()
for folder in sys.argv[2:]:
    model = LM(Config(7, width=16, layers="softmax, lightning", heads=2), seed=0)
    fit(model, loss, Recipe(80), Path(folder), every=0.01, report=report)
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """Killed at some step from the twentieth to the last but one, at which it waits however late the kill comes."""
    run, (cut, whole) = [sys.executable, "-c", SCRIPT], (tmp_path / "cut", tmp_path / "whole")
    process = subprocess.Popen([*run, "endless", str(cut)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while int(process.stdout.readline()) < 20:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = torch.load(cut / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < done < 80
    on = subprocess.run([*run, "on", str(cut), str(whole)], check=True, capture_output=True, text=True)
    assert [int(step) for step in on.stdout.split()] == [*range(done + 1, 81), *range(1, 81)]
    ended, unbroken = (torch.load(folder / "checkpoint.pt", weights_only=True)["model"] for folder in (cut, whole))
    assert all(torch.equal(ended[name], unbroken[name]) for name in unbroken)


def test_it_learns(tmp_path):
    model = train_lm(Config(7, width=32, layers="softmax*2", heads=2), TASK, 17, 32, Recipe(250, 5e-3), tmp_path)
    right, nats = accuracy_of(model, TASK, 17, 64)
    assert right > 0.5
    assert nats < 1.6 < torch.tensor(7.0).log()


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match="another recipe"):
        trained(tmp_path, steps=13)


@pytest.mark.parametrize(("changes", "message"), [({"steps": 0}, "steps: got 0"), ({"rate": 0.0}, "rate: got 0.0")])
def test_bad_recipes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"steps": 1} | changes)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(RuntimeError, match=r"^rate: got .*, with which the loss of step 1 is nan, want a lower one"):
        fit(LM(CONFIG), lambda model, generator: model.norm.weight.sum() * torch.nan, Recipe(3))


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_changed(tmp_path):
    model = LM(CONFIG)
    before = {name: x.clone() for name, x in model.state_dict().items()}

    def loss(ready, generator):  # 0 at a place where the slope is infinite
        return (ready.norm.weight - ready.norm.weight.detach()).clamp(min=0).sqrt().sum()

    with pytest.raises(RuntimeError, match=r"^rate: got .*, with which the gradient of step 1 has the norm inf"):
        fit(model, loss, Recipe(3), tmp_path)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_command_trains_and_writes_a_model(tmp_path):
    done = CliRunner().invoke(
        app, ["train", "task", "copy", str(tmp_path / "m"), "--layers", "gla, softmax", "--width", "16", "--steps", "3"]
    )
    assert done.exit_code == 0, done.output
    assert "right on held-out examples (chance 6.2%)" in done.output
    assert LM.from_pretrained(tmp_path / "m").config.layers == "gla, softmax"
    refused = CliRunner().invoke(app, ["train", "task", "lookup", str(tmp_path / "n"), "--steps", "3"])
    assert "a task of causal self-attention" in str(refused.exception)
    assert os.path.exists(tmp_path / "m" / "log.jsonl")
