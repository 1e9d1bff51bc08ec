"""What policies keep of a prompt beside what kvpress keeps, written down by tests/reference/evictions.py."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

import regard
from regard.core.policy import Policy
from regard.hosts import small
from regard.laws.small import llama
from regard.policies import TOVA, AdaKV, SnapKV

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "evictions.json").read_text())


class KeyDiff(Policy):
    """Keeps the keys that are least like the others, as docs/compression.md has it."""

    def scores(self, view):
        unit = torch.nn.functional.normalize(view.keys.float(), dim=-1)
        return -unit @ unit.mean(0)


OWN = {"keydiff": KeyDiff(), "tova": TOVA(recent=1), "adakv(snapkv(window=4))": AdaKV(of=SnapKV(window=4))}


@cache
def model(name):
    """The model that kvpress was run on."""
    return small.load("tiny")[0] if name == "tiny" else llama(2)


@pytest.mark.parametrize("row", VALUES, ids=lambda row: f"{row['policy']} {row['model']}")
def test_the_same_tokens_are_kept(row):
    policy = OWN.get(row["policy"], row["policy"])
    with regard.compress(model(row["model"]), policy, row["budget"]) as session, torch.no_grad():
        model(row["model"])(input_ids=torch.tensor([row["ids"]]), use_cache=True)
    found = [[at.tolist() for at in session.store.kept(layer)] for layer in session.store.layers]
    assert found == row["kept"]


def test_they_are_told_apart():
    for name in ("tiny", "llama"):
        rows = [row["kept"] for row in VALUES if row["model"] == name]
        assert len(rows) == 6
        assert all(a != b for i, a in enumerate(rows) for b in rows[:i])
