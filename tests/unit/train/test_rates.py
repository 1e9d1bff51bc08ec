"""Rates of parts: steps by hand, and that a run goes on with the rates that it was begun with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.train.fit import Recipe, fit
from regard.train.rates import Rates, fit_parts

RECIPE = Recipe(3, 1e-2, warm_up=1.0, decay=0.0, clip=1e9)


class Two(nn.Module):
    """Two matrices and two vectors, of two parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.network = nn.Linear(3, 5), nn.Linear(3, 7)


def loss(model, generator):
    return model.attention.weight.sum() - 2 * model.network.weight.sum() + model.attention.bias.sum()


def moved(recipe, model=None, **more):
    model = model or Two()
    before = {name: value.clone() for name, value in model.named_parameters()}
    fit_parts(model, loss, recipe, **more)
    return {name: (value - before[name]).detach() for name, value in model.named_parameters()}


def test_each_part_steps_at_its_own_rate():
    """Adam's steps for a gradient that stays are the rate: here 1/3, 2/3 and 3/3 of its highest, 2 of it together."""
    found = moved(Rates(RECIPE, (("attention.bias", 5e-2), ("attention", 3e-3))))
    for name, way, rate in (("attention.weight", -1, 3e-3), ("network.weight", 1, 1e-2), ("attention.bias", -1, 5e-2)):
        torch.testing.assert_close(found[name], torch.full_like(found[name], way * 2 * rate), atol=1e-6, rtol=1e-4)
    assert (found["network.bias"] == 0).all()


def test_without_rates_of_parts_it_is_the_loop():
    one, other = Two(), Two()
    fit_parts(one, loss, RECIPE)
    fit(other, loss, RECIPE)
    again = Two()
    fit_parts(again, loss, Rates(RECIPE, (("attention", RECIPE.rate),)))
    for a, b, c in zip(one.parameters(), other.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_stopped_run_goes_on_and_another_one_does_not(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(step, value):
        if step == 2:
            raise StoppedError

    rates, model = Rates(RECIPE, (("attention", 3e-3),)), Two()
    with pytest.raises(StoppedError):
        fit_parts(Two(), loss, rates, tmp_path, every=0.0, report=stop)
    fit_parts(model, loss, rates, tmp_path)
    whole = Two()
    fit_parts(whole, loss, rates)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    for other in (Rates(RECIPE, (("attention", 4e-3),)), RECIPE):
        with pytest.raises(ValueError, match="folder"):
            fit_parts(Two(), loss, other, tmp_path)


def test_what_names_no_parameter_is_refused():
    with pytest.raises(ValueError, match="own: got 'attn'"):
        moved(Rates(RECIPE, (("attn", 1e-3),)))
    with pytest.raises(ValueError, match="rate above 0"):
        Rates(RECIPE, (("attention", 0.0),))
    frozen = Two()
    frozen.attention.requires_grad_(False)
    with pytest.raises(ValueError, match="own: got 'attention'"):
        moved(Rates(RECIPE, (("attention", 1e-3),)), frozen)
