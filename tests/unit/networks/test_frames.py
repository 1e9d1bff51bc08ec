"""A network of frames: its equations, what knows of what, and the words that it is tried on."""

import itertools

import pytest
import torch

from regard.claims.tracking import drawn
from regard.core.layout import Layout
from regard.networks.frames import FrameActions, random_frames


def test_frames_are_read_alone_and_followed_in_order():
    model = FrameActions(11, 5, 7, 12, 2, 2, 3, 17, seed=0).double()
    (frames,) = random_frames(11, 5, 2, 0)
    vectors = []
    for t in range(6):
        x = model.embedding(frames[:, t]) + model.places
        for block in model.blocks:
            x = block(x, Layout())
        vectors.append(x.mean(1))
    hidden = torch.stack([model.recurrence(torch.stack(vectors[: t + 1], 1))[0][:, -1] for t in range(6)], 1)
    torch.testing.assert_close(model(frames), model.head(model.norm(hidden)))


def test_gradients_reach_the_first_frame_computed_again_or_not():
    found = []
    for again in (False, True):
        model = FrameActions(11, 5, 7, 12, 1, 1, 3, 17, again, seed=0)
        model(random_frames(11, 5, 2, 0)[0])[:, -1].sum().backward()
        found.append(model.embedding.weight.grad)
    torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match="frames: got shape"):
        model(torch.zeros(1, 3, 4, dtype=torch.int64))


def test_products_of_words():
    words, products = drawn(3, 9, torch.Generator().manual_seed(0))
    every = list(itertools.permutations(range(5)))
    for word, product in zip(words.tolist(), products.tolist(), strict=True):
        state = tuple(range(5))
        for letter, wanted in zip(word, product, strict=True):
            state = tuple(state[x] for x in every[letter])
            assert every[wanted] == state
