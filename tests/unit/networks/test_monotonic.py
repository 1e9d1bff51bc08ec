"""Latent places against a sum over every alignment, and the best of them."""

import itertools
import math

import pytest
import torch

from regard.networks.monotonic import LatentMonotonic
from regard.tasks.frames import Frames, distance, errors

GIVEN = [pytest.param(reads, id=reads) for reads in ("hard", "window")]


def every(network, source, target, length):
    """log p(y, a) of every alignment of one sequence, from single probabilities."""
    encoded = network.encode(source[:, :length])
    state, tables = network.start(encoded), []
    for step, token in enumerate(target[0].tolist()):
        previous = target[:, step - 1] if step else torch.full((1,), network.target)
        (hidden, cell), scores, _, told = network.advance(state, previous, encoded)
        state = type(state)(hidden, cell, state.place, state.told, state.fresh, scores)
        tables.append((scores[0], told[0, :, token]))
    found = {}
    for path in itertools.product(range(length), repeat=len(tables)):
        total, last = 0.0, -1
        for place, (scores, told) in zip(path, tables, strict=True):
            start = min(last + 1, length - 1)
            if place < start:
                break
            total += (scores[start:length].log_softmax(0)[place - start] + told[place]).item()
            last = place
        else:
            found[path] = total
    return found


@pytest.mark.parametrize("reads", GIVEN)
def test_dynamic_programming_is_enumeration(reads):
    network = LatentMonotonic(13, 11, 8, reads, 1, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(13, (1, 5), generator=generator), torch.randint(11, (1, 3), generator=generator)
    with torch.no_grad():
        paths = every(network, source, target, 4)
        wanted = math.log(sum(map(math.exp, paths.values())))
        lengths, real = torch.tensor([4]), torch.ones(1, 3, dtype=torch.bool)
        assert -3 * network.loss(source, target, real, lengths).item() == pytest.approx(wanted, abs=1e-9)
        best = max(paths, key=paths.get)
        found = network.align(source, target, lengths)
        assert tuple(found[0].tolist()) == best
        assert -3 * network.loss(source, target, real, lengths, found).item() == pytest.approx(paths[best], abs=1e-9)
        first = network(source, target, lengths)[:, 0].exp()
    assert first.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("reads", GIVEN)
def test_places_sum_to_one_never_lie_in_padding_and_padding_is_nothing(reads):
    network = LatentMonotonic(13, 11, 8, reads, 2, seed=0).double()
    pairs = Frames(12).batch(5, torch.Generator().manual_seed(0))
    target = pairs.target.clamp(max=10)
    shown = network.alignment(pairs.source, target, pairs.lengths)
    torch.testing.assert_close(shown.sum(-1), torch.ones(shown.shape[:2], dtype=torch.float64))
    out = network(pairs.source, target, pairs.lengths)
    for row, length in enumerate(pairs.lengths.tolist()):
        assert shown[row, :, length:].abs().max() < 1e-12 if length < shown.shape[2] else True
        alone = network(pairs.source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(out[row], alone[0])
    path = network.align(pairs.source, target, pairs.lengths)
    assert (path.diff(dim=1) >= 0).all()
    assert (path < pairs.lengths[:, None]).all()


def test_a_window_over_everything_reads_the_same_at_every_place():
    network = LatentMonotonic(13, 11, 8, "window", 50, seed=0).double()
    encoded = network.encode(torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(0)))
    seen = network.contexts(torch.randn(2, 7, dtype=torch.float64), encoded)
    torch.testing.assert_close(seen, seen[:, :1].expand_as(seen))


def test_a_window_reads_what_lies_around_a_place_by_hand():
    """Two keys before it, itself and one behind, by the reader's own scores; the map is the mean over places."""
    network = LatentMonotonic(13, 11, 8, "window", 2, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(13, (2, 7), generator=generator), torch.randint(11, (2, 3), generator=generator)
    encoded = network.encode(source)
    scores = network.scores(torch.randn(2, 8, dtype=torch.float64), encoded)
    seen, near = network.contexts(scores, encoded), torch.zeros(2, 7, 7, dtype=torch.float64)
    for place in range(7):
        window = slice(max(0, place - 2), min(7, place + 2))
        near[:, place, window] = scores[:, window].softmax(1)
    torch.testing.assert_close(seen, near @ encoded.keys)
    maps = network.intermediates(source, target)
    torch.testing.assert_close(maps["read"].sum(-1), torch.ones(2, 1, 3, dtype=torch.float64))
    states, _ = network.states(encoded, target)
    first = torch.zeros(2, 7, dtype=torch.float64)
    for place in range(7):
        window = slice(max(0, place - 2), min(7, place + 2))
        shares = states[0].scores[:, window].softmax(1)
        first[:, window] += states[0].weights[:, place, None] * shares
    torch.testing.assert_close(maps["read"][:, 0, 0], first)


def test_frames_are_their_tokens_and_neighbours_differ():
    pairs = Frames(noise=0.0).batch(20, torch.Generator().manual_seed(1))
    for row, length in enumerate(pairs.lengths.tolist()):
        spoken = [token for token, _ in itertools.groupby(pairs.source[row, :length].tolist())]
        count = int(pairs.real[row].sum()) - 1
        assert spoken == pairs.target[row, :count].tolist()
        assert pairs.source[row, pairs.links[row, :count]].tolist() == spoken
        assert pairs.target[row, count] == 12


def test_edits_by_hand():
    assert distance([1, 2, 3, 4], [1, 3, 4, 4]) == 2
    assert distance([], [1, 2]) == 2
    assert errors(torch.tensor([[1, 2, 9, 5]]), torch.tensor([[1, 2, 3, 9]]), 9) == pytest.approx(1 / 3)
