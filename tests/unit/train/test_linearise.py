"""A model that learns linear layers from itself: what is trained in which stage, that it learns, that a run resumes."""

import pytest
import torch

import regard
from regard.train.fit import Recipe
from regard.train.linearise import Distillation, by_layers, by_logits, linearise, teach
from regard.train.objective import Batch

from .test_extend import STREAM, logits, model

SIZES = {"length": 24, "batch": 2}


def learned(stages, tmp_path=None, **more):
    told = []
    given = Distillation(**SIZES, **stages)
    made = linearise(
        model(), STREAM, layers=[1], distillation=given, folder=tmp_path, report=lambda *x: told.append(x), **more
    )
    return made, told


def test_stages_lower_what_they_are_about():
    begun = model()
    made, told = learned({"layers": Recipe(30, 1e-2), "logits": Recipe(30, 3e-3)}, window=8)
    assert [stage for stage, _, _ in told] == ["layers"] * 30 + ["logits"] * 30
    for stage in ("layers", "logits"):
        values = [value for name, _, value in told if name == stage]
        assert sum(values[-5:]) < sum(values[:5]), stage
    new = {name for name, _ in made.named_parameters() if "layers.1.self_attn" in name}
    for name, weight in begun.named_parameters():
        if name not in new and "layers.1.self_attn" not in name:
            assert torch.equal(dict(made.named_parameters())[name], weight), name


def test_all_weights_are_trained_where_that_is_wanted():
    made, _ = learned({"layers": None, "logits": Recipe(2, 1e-2), "whole": True})
    assert not torch.equal(made.model.layers[0].mlp.up_proj.weight, model().model.layers[0].mlp.up_proj.weight)


def test_nothing_is_left_on_the_model_that_was_learned_from():
    from_whom = model()
    made = linearise(from_whom, STREAM, layers=[1], distillation=Distillation(**SIZES, layers=Recipe(2), logits=None))
    for module in (*from_whom.modules(), *made.modules()):
        assert not module._forward_hooks, type(module)
        assert not module._forward_pre_hooks, type(module)


def test_a_stopped_run_goes_on(tmp_path):
    stages = {"layers": Recipe(3, 1e-2), "logits": Recipe(3, 1e-2)}
    whole, _ = learned(stages, tmp_path / "whole")
    again, told = learned(stages, tmp_path / "whole")
    assert told == []
    assert torch.equal(logits(again, STREAM[None, :20]), logits(whole, STREAM[None, :20]))

    def stopped(stage, step, value):
        if (stage, step) == ("logits", 2):
            raise KeyboardInterrupt

    given = Distillation(**SIZES, **stages)
    with pytest.raises(KeyboardInterrupt):
        linearise(model(), STREAM, layers=[1], distillation=given, folder=tmp_path / "cut", report=stopped)
    rest, told = learned(stages, tmp_path / "cut")
    assert {stage for stage, _, _ in told} == {"logits"}
    assert torch.equal(logits(rest, STREAM[None, :20]), logits(whole, STREAM[None, :20]))


def test_losses_are_zero_for_the_model_itself():
    begun = model()
    ids = STREAM[:40].view(2, 20)
    assert by_layers(begun, begun, ["model.layers.0", "model.layers.1"])(ids) == 0
    assert abs(by_logits(begun, begun, Distillation())(ids)) < 1e-6


def test_the_second_stage_is_the_divergence_of_next_tokens():
    one, other = model(), model()
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    ids = STREAM[None, :17]
    p, q = ((logits(m, ids) / 2).log_softmax(-1) for m in (one, other))
    want = 4 * (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(by_logits(one, other, Distillation(temperature=2.0))(ids), want)


def test_refusals():
    with pytest.raises(ValueError, match="stream: got 24 tokens"):
        regard.linearise(model(), STREAM[:24], distillation=Distillation(**SIZES))
    with pytest.raises(ValueError, match="a recipe for one"):
        Distillation(layers=None, logits=None)


def test_a_model_that_became_linear_is_taught_instructions_and_long_sequences(tmp_path):
    """Answers alone are learned first; each stage lowers its loss, and a run that was stopped goes on."""
    told = []

    def asked(generator):
        start = int(torch.randint(len(STREAM) - 16, (), generator=generator))
        return Batch(STREAM[None, start : start + 16], learned=(torch.arange(16) >= 9)[None])

    def long(generator):
        return Batch(STREAM[None, :48])

    stages = {"instructions": (asked, Recipe(12, 3e-3)), "long": (long, Recipe(12, 3e-3))}
    made, _ = learned({"layers": Recipe(1, 1e-2), "logits": None})
    found = teach(made, stages, tmp_path, report=lambda *x: told.append(x))
    assert [stage for stage, _, _ in told] == ["instructions"] * 12 + ["long"] * 12
    values = [value for stage, _, value in told if stage == "long"]
    assert values[-1] < values[0]
    again, _ = learned({"layers": Recipe(1, 1e-2), "logits": None})
    told.clear()
    assert torch.equal(logits(teach(again, stages, tmp_path), STREAM[None, :20]), logits(found, STREAM[None, :20]))
    assert told == []
    with pytest.raises(ValueError, match="stages"):
        teach(made, {})
