"""A language model in three parts: its authors' numbers, who thinks when, and batches whose rows are out of step."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.networks import LM, Config
from regard.networks.direct_multi_token import DirectMultiToken

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "thoughts.json").read_text())
FOUR = Config(29, 24, "softmax*4", heads=6, kv_heads=2, inner=17)
THEIRS = {"attention.projection.q": "self_attn.q_proj", "attention.projection.k": "self_attn.k_proj"}
THEIRS |= {"attention.projection.v": "self_attn.v_proj", "attention.projection.out": "self_attn.o_proj"}
THEIRS |= {"network.gate": "mlp.gate_proj", "network.up": "mlp.up_proj", "network.down": "mlp.down_proj"}
THEIRS |= {"norms.0": "input_layernorm", "norms.1": "post_attention_layernorm"}


def filled(name, shape):
    """The numbers of a name and a shape, as where the values were made."""
    count, spread = math.prod(shape), 1.0 if len(shape) == 1 else shape[-1] ** -0.5
    place = torch.arange(count, dtype=torch.float64) + sum(i * ord(x) for i, x in enumerate(name, 1)) % 997
    return (torch.sin(1.7 * place * place % 6.1) * spread).reshape(tuple(shape))


def theirs(name):
    if not name.startswith("blocks."):
        return {"embedding.weight": "embed_tokens.weight", "norm.weight": "norm.weight"}[name]
    _, number, rest = name.split(".", 2)
    return f"layers.{number}.{THEIRS[rest.removesuffix('.weight')]}.weight"


@torch.no_grad()
@pytest.mark.parametrize("about", VALUES, ids=lambda about: f"a thought for {about['horizon']}")
def test_it_is_its_authors(about):
    config = Config(29, 24, f"softmax*{about['layers']}", heads=6, kv_heads=2, inner=17)
    model = DirectMultiToken(config, about["encode"], about["think"], about["horizon"], seed=0).double()
    model.load_state_dict({name: filled(theirs(name), x.shape) for name, x in model.state_dict().items()})
    logits = model(torch.arange(22).view(2, 11) * 7 % 29)[:, :, ::3].flatten()
    torch.testing.assert_close(logits, torch.tensor(about["logits"], dtype=torch.float64), atol=1e-6, rtol=0)


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 5), st.integers(0, 99), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_rows_out_of_step_are_what_they_are_alone(horizon, seed, chunks):
    """Padding anywhere, chunks of any size: the logits of one call, and no more tokens wait than may."""
    model, draw = DirectMultiToken(FOUR, 1, 2, horizon, seed=1).double(), torch.Generator().manual_seed(seed)
    n = sum(chunks)
    ids, mask = torch.randint(29, (3, n), generator=draw), torch.rand(3, n, generator=draw) < 0.6
    state, parts = model.start(3), []
    for part in torch.arange(n).split(chunks):
        out, state = model.extend(ids[:, part], state, mask[:, part])
        parts.append(out)
        length = mask[:, : int(part[-1]) + 1].sum(1)
        assert state.key_mask.sum(1).tolist() == [(int(count) - 1) % horizon if count else 0 for count in length]
    torch.testing.assert_close(torch.cat(parts, 1)[mask], model(ids, mask)[mask], atol=1e-10, rtol=0)


@torch.no_grad()
def test_the_middle_layers_run_at_every_third_token():
    model, calls = DirectMultiToken(FOUR, 1, 2, 3, seed=1), []
    for place, block in enumerate(model.layers):
        block.attention.projection.q.register_forward_hook(
            lambda _, given, out, place=place: calls.append((place, given[0].shape[1]))
        )
    state, ids = model.start(2), torch.arange(8).expand(2, 8)
    for step, token in enumerate(ids.split([4, 1, 1, 1, 1], 1)):
        calls.clear()
        _, state = model.extend(token, state)
        middle = [count for place, count in calls if place in (1, 2)]
        assert middle == [[4, 4], [], [], [3, 3], []][step]
        assert [count for place, count in calls if place in (0, 3)] == [token.shape[1]] * 2
    assert model.state_bytes(8, 2) == state.bytes
    assert state.select(torch.tensor([1])).waiting.shape == (1, 1, 24)


@torch.no_grad()
def test_thoughts_are_heard_where_a_cycle_begins_alone():
    """Other middle layers change what the last one is given at positions 0, 3 and 6; through its keys all logits."""
    model, ids = DirectMultiToken(FOUR, 1, 2, 3, seed=1), torch.randint(29, (1, 8))
    before = model(ids)
    heard = []
    hook = model.layers[3].register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    model(ids)
    for block in model.layers[1:3]:
        block.network.down.weight.mul_(-2)
    after = model(ids)
    hook.remove()
    changed = (heard[0] - heard[1]).abs().amax((0, 2)) > 0
    assert changed.tolist() == [t % 3 == 0 for t in range(8)]
    assert (before - after).abs().amax((0, 2)).min() > 0


def test_a_trained_model_is_taken_over_and_its_embedding_stays():
    plain = LM(FOUR, seed=3)
    found = DirectMultiToken.of(plain, 2, 1, 4)
    assert all(torch.equal(found.state_dict()[name], x) for name, x in plain.state_dict().items())
    found.loss(torch.arange(12)[None]).backward()
    assert found.embedding.weight.grad is None
    assert found.layers[2].network.down.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert found.generate(torch.arange(5)[None], 7).shape == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((4, 0), "encode, think: got 4, 0, want at least 1 each"), ((3, 1), "got 3, 1"), ((1, 2, 0), "horizon: got 0")],
)
def test_parts_without_layers_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        DirectMultiToken(FOUR, *arguments)
