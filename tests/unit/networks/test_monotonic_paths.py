"""Latent segments against a sum over every alignment, where the decoder is not fed; kept ways where it is."""

import itertools
import math

import pytest
import torch

from regard.networks.monotonic import LatentMonotonic
from regard.networks.monotonic_paths import LatentSegmental
from regard.tasks.frames import Frames

READS = ("hard", "window", "segment")


def made(reads, feed=False, seed=0):
    return LatentSegmental(13, 11, 8, reads, 2, feed=feed, seed=seed).double()


def drawn(m=5, n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(13, (1, m), generator=generator), torch.randint(11, (1, n), generator=generator)


def context(network, encoded, hidden, start, place):
    """c by the sentence that defines it, for one place and the first that could have been."""
    keys, m = encoded.keys[0], encoded.keys.shape[1]
    if network.reads == "hard":
        return keys[place]
    near = range(start, place + 1) if network.reads == "segment" else range(max(0, place - 2), min(m, place + 2))
    near = list(near)
    e = torch.stack([(network.reader.scorer.out[0] * torch.tanh(hidden + keys[k])).sum() for k in near])
    return e.softmax(0) @ keys[near]


@torch.no_grad()
def score(network, source, target, path):
    """log p(y, a), step by step, from the cell, the keys and the readers' vectors alone."""
    encoded, total, before = network.encode(source), 0.0, -1
    hidden, cell = torch.tanh(network.begin(encoded.end)).chunk(2, -1)
    seen, previous = torch.zeros(8, dtype=torch.float64), network.target
    for token, place in zip(target[0].tolist(), path, strict=True):
        x = network.embedding.weight[previous]
        hidden, cell = network.cell(torch.cat([x, seen] if network.feed else [x])[None], (hidden, cell))
        start = min(before + 1, source.shape[1] - 1)
        if place < start:
            return -math.inf
        seen = context(network, encoded, hidden[0], start, place)
        vector = (network.reader if network.mover is None else network.mover).scorer.out[0]
        f = (vector * torch.tanh(hidden + encoded.keys[0])).sum(1)[start:]
        said = torch.tanh(network.say(torch.cat([seen, hidden[0]])))
        total += (f.log_softmax(0)[place - start] + network.out(said).log_softmax(0)[token]).item()
        before, previous = place, token
    return total


def every(network, source, target):
    m, n = source.shape[1], target.shape[1]
    return {path: score(network, source, target, path) for path in itertools.product(range(m), repeat=n)}


@pytest.mark.parametrize("reads", READS)
def test_sums_and_best_are_those_of_all_alignments_where_the_decoder_is_not_fed(reads):
    network, (source, target) = made(reads), drawn()
    paths, real = every(network, source, target), torch.ones(1, 3, dtype=torch.bool)
    wanted = math.log(sum(map(math.exp, paths.values())))
    assert -3 * network.loss(source, target, real).item() == pytest.approx(wanted, abs=1e-9)
    best = max(paths, key=paths.get)
    assert tuple(network.align(source, target)[0].tolist()) == best


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("feed", [False, True])
def test_one_alignment_is_its_own_product(reads, feed):
    network, (source, target) = made(reads, feed), drawn(5, 4)
    real = torch.ones(1, 4, dtype=torch.bool)
    for path in ((0, 1, 3, 4), (1, 2, 4, 4), (4, 4, 4, 4)):
        told = network.loss(source, target, real, path=torch.tensor([path]))
        assert -4 * told.item() == pytest.approx(score(network, source, target, path), abs=1e-9)


@pytest.mark.parametrize("reads", READS)
def test_what_is_kept_where_it_is_fed_is_at_most_all_and_its_best_is_an_alignment(reads):
    """Two steps: the second has one way to each place from each, of which nothing is lost in the mean over places."""
    network, (source, target) = made(reads, True), drawn(5, 2)
    paths, real = every(network, source, target), torch.ones(1, 2, dtype=torch.bool)
    wanted = math.log(sum(map(math.exp, paths.values())))
    assert -2 * network.loss(source, target, real).item() == pytest.approx(wanted, abs=1e-9)
    assert tuple(network.align(source, target)[0].tolist()) == max(paths, key=paths.get)


def test_hard_places_are_those_of_the_network_without_paths():
    """On the same weights, log p of each token; whose cell is the same without feeding."""
    ours, theirs = made("hard"), LatentMonotonic(13, 11, 8, "hard", 2, seed=1).double()
    theirs.load_state_dict(ours.state_dict())
    pairs = Frames(12).batch(4, torch.Generator().manual_seed(0))
    target = pairs.target.clamp(max=10)
    given = (pairs.source, target, pairs.lengths)
    torch.testing.assert_close(ours(*given), theirs(*given))
    torch.testing.assert_close(ours.alignment(*given), theirs.alignment(*given))
    assert torch.equal(ours.align(*given), theirs.align(*given))


@pytest.mark.parametrize("reads", READS)
def test_padding_is_nothing_and_places_only_move_forward(reads):
    network = made(reads, True)
    pairs = Frames(12).batch(4, torch.Generator().manual_seed(0))
    target = pairs.target.clamp(max=10)
    shown, out = (f(pairs.source, target, pairs.lengths) for f in (network.alignment, network))
    torch.testing.assert_close(shown.sum(-1), torch.ones(shown.shape[:2], dtype=torch.float64))
    for row, length in enumerate(pairs.lengths.tolist()):
        assert (shown[row, :, length:] < 1e-12).all()
        torch.testing.assert_close(out[row], network(pairs.source[row : row + 1, :length], target[row : row + 1])[0])
    path = network.align(pairs.source, target, pairs.lengths)
    assert (path.diff(dim=1) >= 0).all()
    assert (path < pairs.lengths[:, None]).all()


def test_another_way_to_read_and_no_reach_are_named():
    with pytest.raises(ValueError, match="reads: got 'soft'"):
        LatentSegmental(3, 3, 4, "soft")
    with pytest.raises(ValueError, match="reach"):
        LatentSegmental(3, 3, 4, reach=0)
