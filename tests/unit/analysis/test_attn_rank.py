"""Blocks go where the profile says; slots that cannot be are refused."""

from __future__ import annotations

import pytest
import torch

from regard.analysis.attn_rank import Slotted, agreeing_layer, by_profile, slot_profile


def test_the_most_relevant_block_goes_into_the_slot_of_most_attention():
    profile = torch.tensor([0.3, 0.1, 0.2, 0.5])
    assert by_profile(profile, [0.0, 9.0, 4.0, 1.0]) == [2, 0, 3, 1]
    assert by_profile(-profile, [0.0, 9.0, 4.0, 1.0]) == [3, 1, 2, 0]
    with pytest.raises(ValueError, match="relevance: got 2 blocks, want one for each of 4 slots"):
        by_profile(profile, [1.0, 2.0])


def test_the_layer_is_that_in_which_halves_agree():
    one = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.1, 0.3], [0.2, 0.2, 0.1]])
    other = torch.tensor([[0.9, 0.2, 0.1], [0.4, 0.1, 0.2], [0.1, 0.3, 0.2]])
    assert agreeing_layer(one, other) == 1


def test_what_has_no_slots_is_refused():
    ids = torch.arange(9)
    with pytest.raises(ValueError, match=r"blocks: got \[\(0, 3\)\], want spans from token 1"):
        Slotted(ids, [(0, 3)], (6, 9))
    with pytest.raises(ValueError, match=r"question: got \(6, 11\)"):
        Slotted(ids, [(1, 3)], (6, 11))
    one, other = Slotted(ids, [(1, 3)], (6, 9)), Slotted(ids, [(1, 3), (3, 5)], (6, 9))
    with pytest.raises(ValueError, match=r"prompts: got \[1, 2\] slots"):
        slot_profile(None, [one, other])
