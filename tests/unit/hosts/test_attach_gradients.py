"""Gradients through an attachment, and through gradient checkpointing, which runs calls again."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.core.edit import Place
from regard.edits import HeadAblation, Trace
from regard.hosts.edited_call import attend_edited
from regard.hosts.softmax_call import SoftmaxCall
from unit.hosts.models import causal, tokens
from unit.hosts.test_attach import ABLATED, Double, Hide, Tilt
from unit.hosts.test_watch import CLOSE


class Count:
    """A probe that counts the rows of a batch that it is shown."""

    name = "count"

    def __init__(self) -> None:
        self.rows = 0

    def update(self, tile) -> None:
        self.rows += len(tile.rows)

    def merge(self, other) -> None:
        raise NotImplementedError

    def result(self) -> int:
        return self.rows


@pytest.mark.parametrize("part", ["masses", "scores", "heads", "hidden"])
def test_gradients_flow_and_checkpointing_computes_the_same_again(part):
    model, ids = causal("Llama"), tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    edit = {
        "masses": Tilt(3.0, keys=[(0, 2)]),
        "scores": Hide(keys=[(1, 3)], rows=slice(4, None)),
        "heads": HeadAblation(ABLATED, "mean"),
        "hidden": Double("attn", rows=slice(2, 5)),
    }[part]
    found, counts, trace = [], [], Trace("z", "resid", "mlp")
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        trace.clear()
        with regard.steer(model, edit, trace), regard.watch(model, [Count()]) as session:
            model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
        assert {key: len(held) for key, held in trace.kept.items()} == dict.fromkeys(trace.kept, 1)
        counts.append(session["count"])
    assert counts == [18, 18]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("heads", [None, [1]])
def test_the_gradient_of_moved_mass_is_that_of_the_definition(heads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 5, 3, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1))
    real = torch.tensor([[True] * 5, [False] + [True] * 4])
    edits = [Tilt(3.0, keys=[(0, 2)], heads=heads), Tilt(0.5, keys=[(1, 4)])]
    place = Place(0, 2, 1, torch.arange(5), 0, real, real)

    def out(q, k, v):
        call = SoftmaxCall(q, k, 0.6, causal=True, mask=real[:, None, None].expand(-1, -1, 5, -1))
        return attend_edited(edits, call, v, 0.0, place).out

    assert torch.autograd.gradcheck(out, (q, k, v))


def test_two_forward_passes_before_a_checkpointed_backward_are_told_apart_or_refused():
    model = causal("Llama").train()
    model.gradient_checkpointing_enable()
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    with regard.steer(model, Tilt(3.0, keys=[(0, 2)])):
        one = model(input_ids=ids, labels=ids, use_cache=False).loss
        two = model(input_ids=ids[:, :7], labels=ids[:, :7], use_cache=False).loss
        (one + two).backward()
        one = model(input_ids=ids, labels=ids, use_cache=False).loss
        two = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
        with pytest.raises(
            RuntimeError, match=r"2 earlier calls of model\.layers\.1\.self_attn that gradient checkpointing"
        ):
            (one + two).backward()
