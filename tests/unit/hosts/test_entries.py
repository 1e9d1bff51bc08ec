"""What heads hold grows in place, and nothing that was held before is touched by it."""

from __future__ import annotations

import pytest
import torch

from regard.hosts.entries import Entries, Piece, extended, moved, selected
from regard.hosts.growing import PART, grown

COUNTS = (67, 5, 131)


def heads(seed=0):
    """Three heads of different lengths, one number noted of each entry."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for t in COUNTS:
        keys, values = torch.randn(t, 3, generator=draw), torch.randn(t, 2, generator=draw)
        found.append(Entries(torch.arange(t) * 2, {"mass": torch.rand(t, generator=draw)}, keys, values))
    return found


def fresh(n, seed=1):
    """Positions, keys and values of new tokens of three heads."""
    draw = torch.Generator().manual_seed(seed)
    return torch.arange(300, 300 + n), torch.randn(3, n, 3, generator=draw), torch.randn(3, n, 2, generator=draw)


def equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip([*one.parts, *one.noted], [*other.parts, *other.noted], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def joined(held, new, fill=0.5):
    """The definition: everything concatenated."""
    positions, keys, values = new
    return [
        Entries(
            torch.cat([one.positions, positions]),
            {"mass": torch.cat([one.stats["mass"], torch.full((len(positions),), fill)])},
            torch.cat([one.keys, keys[h]]),
            torch.cat([one.values, values[h]]),
        )
        for h, one in enumerate(held)
    ]


@pytest.mark.parametrize("steps", [(1, 1, 1, 1, 1), (1, 3, 1), (200, 1)])
def test_new_tokens_stand_behind_those_of_each_head(steps):
    found, piece = moved(heads())
    wanted = heads()
    for at, n in enumerate(steps):
        found, piece = extended(found, piece, {"mass": 0.5}, *fresh(n, at))
        wanted = joined(wanted, fresh(n, at))
        equal(found, wanted)
    kept = [torch.tensor([0, 3, 66]), torch.tensor([], dtype=torch.long), torch.arange(90)]
    found, piece = selected(found, piece, kept)
    equal(found, [one.select(at, *one.pair) for one, at in zip(wanted, kept, strict=True)])
    equal(selected(wanted, None, kept)[0], found)
    storages = {part.untyped_storage().data_ptr() for one in found for part in one.parts}
    assert storages == {part.untyped_storage().data_ptr() for part in piece.tensors}
    assert len(piece.tensors[1]) == 93 + 3 * (1 + 93 // (PART * 3))


def test_two_that_share_a_piece_do_not_write_into_each_other():
    held, piece = moved(heads())
    before = [[part.clone() for part in one.parts] for one in held]
    first, owner = extended(held, piece, {"mass": 0.5}, *fresh(1, 1))
    second, other = extended(held, piece, {"mass": 0.5}, *fresh(1, 2))
    assert owner is piece
    assert other is not piece
    equal(first, joined(heads(), fresh(1, 1)))
    equal(second, joined(heads(), fresh(1, 2)))
    for one, parts in zip(held, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parts, parts, strict=True))


def test_memory_of_inference_mode_is_left_alone_outside_of_it():
    with torch.inference_mode():
        held, piece = moved(heads())
    found, other = extended(held, piece, {"mass": 0.5}, *fresh(1))
    assert other is not piece
    equal(found, joined(heads(), fresh(1)))


def test_gradients_reach_what_is_taken_in():
    held, piece = moved(heads())
    positions, keys, values = fresh(2)
    keys.requires_grad_()
    found, piece = extended(held, piece, {"mass": 0.5}, positions, keys, values)
    assert piece is None
    (grad,) = torch.autograd.grad(found[1].keys.sum(), keys)
    assert grad.sum(2).tolist() == [[0, 0], [3, 3], [0, 0]]


def test_rows_grow_in_place_while_there_is_room():
    start, room, found = torch.randn(2, 3, 2 * PART, 5), None, None
    parts, found = [start], start
    for at in range(5):
        parts.append(torch.full((2, 3, 1, 5), float(at)))
        before = found
        found, room = grown(found, parts[-1], 2, room)
        assert torch.equal(found, torch.cat(parts, 2))
    assert found.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    again, other = grown(before, parts[0], 2, room)
    assert other is not room
    assert torch.equal(again, torch.cat([before, start], 2))
    assert torch.equal(found, torch.cat(parts, 2))


def test_a_piece_has_no_more_room_than_it_says():
    assert not Piece.of(heads(), 1).has_room(heads(), 1 + sum(COUNTS) // (PART * 3) + 1)
    assert Piece.of(heads(), 1).has_room(heads(), 1 + sum(COUNTS) // (PART * 3))
