"""What is measured of sinks on the Bigram-Backcopy task, by planted maps and models that know the law."""

import pytest
import torch
from torch import Generator

from regard.claims import dormant
from regard.claims.figures import Figures
from regard.claims.testbeds import backcopy, source
from regard.networks.lm import LM


class Knowing:
    """Loses what the law does, or what a guess among all tokens does."""

    def __init__(self, task, guesses):
        self.task, self.guesses = task, guesses

    def loss(self, ids):
        law = self.task.law(ids)
        law = torch.full_like(law, 1 / self.task.vocabulary) if self.guesses else law
        return -law.gather(2, ids[:, 1:, None]).log().mean()


def test_the_table_is_of_probabilities_and_triggers_are_the_most_frequent():
    table = backcopy.bigrams(64)
    torch.testing.assert_close(table.sum(1), torch.ones(64))
    codes = source.characters(False)
    often = torch.bincount(codes, minlength=128).sort(descending=True)
    pair = (codes[:-1] == often.indices[2]) & (codes[1:] == often.indices[5])
    others = torch.isin(codes[1:][codes[:-1] == often.indices[2]], often.indices[:64]).sum()
    assert table[2, 5].item() == pytest.approx((pair.sum() / others).item())
    assert backcopy.task().triggers == (0, 1, 2)
    _, answers = backcopy.task().batch(Generator().manual_seed(0), 200, 64)
    assert 0.2 < answers.float().mean() < 0.4


@pytest.mark.parametrize("triggers", [0, 3])
def test_who_knows_the_law_loses_nothing_above_it(triggers):
    task = backcopy.task(triggers)
    ids = backcopy.held_out(task, 16)
    assert backcopy.excess(Knowing(task, False), task, ids) == pytest.approx(0, abs=1e-5)
    assert backcopy.excess(Knowing(task, True), task, ids) > 1


def planted(monkeypatch, ids, triggers, dormant):
    """A model of one head that gives the mark ``dormant``, and the token before the rest; from triggers it has all."""
    at = torch.arange(1, 64)
    maps = torch.zeros(len(ids), 1, 64, 64)
    maps[:, :, 0, 0] = 1
    to_mark = torch.where(triggers[:, 1:], 0.0, dormant)
    maps[:, 0, at, 0] += to_mark
    maps[:, 0, at, at - 1] += 1 - to_mark
    monkeypatch.setattr(LM, "intermediates", lambda self, of: {"layer": maps[: len(of)]})
    return backcopy.network(0)


@torch.no_grad()
def test_what_the_mark_receives_is_told_by_who_gives_it(monkeypatch):
    ids = backcopy.held_out(backcopy.task(), 16)
    triggers = ids < 3
    model = planted(monkeypatch, ids, triggers, 0.75)
    found = dormant.received(model, ids, triggers)
    alone = (~triggers[:, 1]).float().mean().item()  # whose token before is the mark
    rest = (~triggers[:, 1:]).float().mean().item()
    assert found["dormant"] == pytest.approx(0.75 + 0.25 * alone / (63 * rest), abs=1e-4)
    assert found["active"] == pytest.approx(0, abs=1e-6)
    assert found["copies"] == pytest.approx(1, abs=1e-6)
    assert found["itself"] == pytest.approx(0, abs=1e-6)
    assert found["mass"] == pytest.approx((0.75 * rest) + 0.25 * alone / 63, abs=1e-4)
    without = dormant.received(model, ids, torch.zeros_like(triggers))
    assert without["active"] is without["copies"] is None
    assert without["dormant"] == pytest.approx(found["mass"], abs=1e-6)


@torch.no_grad()
def test_a_value_that_is_drained_is_told(monkeypatch):
    ids = backcopy.held_out(backcopy.task(), 4)
    model = planted(monkeypatch, ids, ids < 3, 0.5)
    whole = dormant.received(model, ids, ids < 3)["value"]
    assert whole is not None
    assert whole > 0.5
    model.embedding.weight[backcopy.task().mark].zero_()
    model.places[0].zero_()
    assert dormant.received(model, ids, ids < 3)["value"] == pytest.approx(0, abs=1e-6)


def test_rows_that_do_not_sum_to_one_leave_the_rest_to_the_key(monkeypatch):
    ids = backcopy.held_out(backcopy.task(), 8)
    model = planted(monkeypatch, ids, ids < 3, 0.5)
    assert dormant.left_over(model, ids) == 0
    maps = model.intermediates(ids)["layer"]
    monkeypatch.setattr(LM, "intermediates", lambda self, of: {"layer": 0.6 * maps})
    assert dormant.left_over(model, ids) == 1


@torch.no_grad()
def test_positions_are_learned_and_told_to_whole_sequences_alone():
    model, ids = backcopy.network(0).eval(), torch.randint(0, 64, (2, 23), generator=Generator().manual_seed(0))
    same = ids[:, :1].expand(2, 5)  # of which each says what the first does, but for its place
    assert (model(same)[:, 1:] - model(same)[:, :1]).abs().amax((0, 2)).min() > 1e-2
    model.places[1:].copy_(model.places[:1].expand(63, -1))
    torch.testing.assert_close(model(same)[:, 4], model(same)[:, 0])
    with pytest.raises(TypeError, match="whole sequences"):
        model.generate(ids, 1)


def rows(**shares):
    """A row of each setting; others are nowhere sinks."""
    zeros = dict.fromkeys(("before", "learned", "mass", "dormant", "itself", "value", "first"), 0.0)
    return [{"setting": name} | zeros | shares.get(name.replace(" ", "_"), {}) for name in dormant.SETTINGS] * 2


def test_claims_hold_of_sinks_that_are_as_said_and_of_no_others():
    sunk, key = {"plain": {"first": 0.5, "mass": 0.5}}, {"key_bias": {"learned": 0.5}}
    assert dormant.is_absorbed(Figures(rows(**sunk, **key))).held
    assert not dormant.is_absorbed(Figures(rows(**sunk))).held
    assert not dormant.is_absorbed(Figures(rows(**key))).held
    assert not dormant.is_absorbed(Figures(rows(**sunk, key_bias={"learned": 0.5, "first": 0.5}))).held
    assert dormant.emerges_with_softmax(Figures(rows(**sunk))).held
    assert not dormant.emerges_with_softmax(Figures(rows())).held
    assert not dormant.emerges_with_softmax(Figures(rows(**sunk, sigmoid={"first": 0.5}))).held
    assert not dormant.emerges_with_softmax(Figures(rows(plain={"first": 0.5, "before": 0.1}))).held
    assert dormant.looks_less_at_the_first(Figures(rows(**sunk))).held
    assert not dormant.looks_less_at_the_first(Figures(rows(**sunk, gates={"mass": 0.5}))).held
