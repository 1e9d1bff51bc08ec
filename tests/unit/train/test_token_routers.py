"""Routers of queries: both ends, what is trained, what is read, and that a text is continued as it is read."""

import pytest
import torch

import regard
from regard.train.fit import Recipe
from regard.train.token_routers import RECIPE, SURE, Thrift, TokenRouter, token_routed, token_routers

from .test_extend import STREAM, logits, model

IDS = STREAM[None, :20]


def draw(generator):
    start = int(torch.randint(len(STREAM) - 24, (), generator=generator))
    return STREAM[None, start : start + 24]


def test_both_ends_are_the_model_and_its_window():
    begun = model()
    found = token_routed(begun, Thrift(window=3, sinks=1))
    with found:
        torch.testing.assert_close(logits(begun, IDS), logits(model(), IDS))
    assert found.share(IDS) == 1
    for layer in found.layers:
        torch.nn.init.constant_(layer.router.bias, -2.0)
    with found:
        got = logits(begun, IDS)
    with regard.swap(begun, "window", size=3, sinks=1):
        torch.testing.assert_close(got, logits(begun, IDS))
    assert found.share(IDS) == 0


def test_routes_are_of_the_states_that_come_into_attention():
    """By hand in the first layer: σ of what the normed embeddings give."""
    begun = model()
    found = token_routed(begun)
    for layer in found.layers:
        torch.nn.init.normal_(layer.router.weight, generator=torch.Generator().manual_seed(1))
    with found:
        logits(begun, IDS)
        first = found.layers[0]
        x = begun.model.layers[0].input_layernorm(begun.model.embed_tokens(IDS))
        want = torch.sigmoid(x @ first.router.weight.T + first.router.bias).mT
        torch.testing.assert_close(found.routes()[0], want)
    assert first.route is None


def test_only_routers_are_trained_and_become_sparing():
    begun, losses = model(), []
    thrift, recipe = Thrift(5.0, window=3), Recipe(40, 1e-1, decay=0.0)
    found = token_routers(begun, draw, thrift, recipe, report=lambda *told: losses.append(told))
    for parameter, other in zip(begun.parameters(), model().parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert parameter.requires_grad
    assert found.share(IDS) < 0.5
    assert len(losses) == 40
    free = token_routers(model(), draw, Thrift(0.0, window=3), Recipe(1, 1e-3, decay=0.0))
    assert free.share(IDS) == 1


def test_the_recipe_can_turn_every_query_away():
    """A step of Adam changes a bias by its rate at most, and all of them have to take it below zero."""
    assert sum(RECIPE.rate_at(step) for step in range(RECIPE.steps)) > SURE
    assert Thrift().sinks > 0


def test_a_text_is_continued_as_it_is_read():
    begun = model()
    found = token_routed(begun, Thrift(window=3))
    for layer in found.layers:
        torch.nn.init.normal_(layer.router.weight, generator=torch.Generator().manual_seed(1))
        torch.nn.init.zeros_(layer.router.bias)
    with found, torch.no_grad():
        whole = begun(input_ids=IDS, use_cache=False).logits
        part = begun(input_ids=IDS[:, :13], use_cache=True)
        rest = begun(input_ids=IDS[:, 13:], past_key_values=part.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 13:], rtol=1e-4, atol=1e-5)
    assert 0 < found.share(IDS) < 1


def test_what_is_refused():
    with pytest.raises(ValueError, match="price"):
        Thrift(-1.0)
    q = torch.randn(1, 2, 5, 4)
    router = TokenRouter(8, 2)
    with pytest.raises(ValueError, match="hear"):
        router(q, q, q)
    router.hear(torch.randn(1, 4, 8))
    with pytest.raises(ValueError, match="hear"):
        router(q, q, q)
