"""Profiles of heads by passes of their own, which kind is tuned, and by what the factor is chosen."""

import pytest
import torch

import regard
from regard.edits import ZeroTuning
from regard.hosts.calibrate import Answered
from regard.hosts.head_profile import HeadProfile, head_profile, tuned
from regard.laws.small import llama, tokens

EXAMPLES = [Answered((tokens(9) + shift) % 29, torch.tensor([5 + shift, 8])) for shift in range(2)]


@torch.no_grad()
def said(model, example, edit=None):
    """The answer's log-probabilities, token by token, by the logits of its places."""
    ids = torch.cat([example.prompt, example.answer])
    with regard.steer(model, *([] if edit is None else [edit])):
        logs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    n = len(example.prompt)
    return torch.stack([logs[n - 1 + place, token] for place, token in enumerate(example.answer)]), logs[n - 1 : -1]


def test_each_head_is_tried_alone():
    model, seen = llama(2), []
    found = head_profile(model, EXAMPLES, 1.7, layers=[1], progress=lambda done, total: seen.append((done, total)))
    assert found.gains[0].isnan().all()
    for head in (0, 3):
        edit = ZeroTuning(1.7, heads={1: [head]})
        gains = [(said(model, one, edit)[0] - said(model, one)[0]).mean().item() for one in EXAMPLES]
        assert found.gains[1, head].item() == pytest.approx(sum(gains) / 2, abs=1e-6)
    assert seen == [(1, 1)]
    assert found.gains[1].abs().max() > 1e-5


def test_the_more_common_kind_is_tuned():
    gains = torch.tensor([[0.2, -0.1, torch.nan], [-0.3, 0.0, -0.4]])
    found = HeadProfile(gains, 1.5)
    assert found.dominant == "down"
    assert found.heads("down") == {0: [1], 1: [0, 2]}
    assert found.heads("up") == {0: [0]}
    assert found.edit(0.5).where.heads == {0: [1], 1: [0, 2]}
    assert HeadProfile(-gains, 1.5).dominant == "up"
    with pytest.raises(ValueError, match="profile: got no head"):
        HeadProfile(torch.zeros(2, 3), 1.5).edit(0.5)


@pytest.mark.parametrize("by", ["answers", "entropy"])
def test_the_factor_is_the_best_by_hand(by):
    model = llama(2)
    profile = HeadProfile(torch.tensor([[1.0, -1.0, 1.0, 1.0, 1.0, 0.0]] * 2), 1.5)
    edit, told = tuned(model, EXAMPLES, profile, (0.2, 1.0, 3.0), by)
    for gamma, value in told.items():
        each = []
        for one in EXAMPLES:
            right, logs = said(model, one, profile.edit(gamma))
            each.append(right.mean() if by == "answers" else (logs.exp() * logs).sum(-1).mean())
        assert value == pytest.approx(float(sum(each)) / 2, abs=1e-6)
    assert edit.gamma == max(told, key=told.get)
    assert len(set(told.values())) == 3


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"examples, gamma: got 0, 1\.5"):
        head_profile(llama(2), [])
    with pytest.raises(ValueError, match="by: got 'accuracy', want 'answers' or 'entropy'"):
        tuned(llama(2), EXAMPLES, HeadProfile(torch.ones(2, 6), 1.5), by="accuracy")
