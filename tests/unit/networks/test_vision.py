"""The vision transformer: shapes, what it refuses, and that it learns to tell digits apart."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from regard.networks.lm import Config
from regard.networks.vision.vit import ViT
from regard.train.fit import Recipe, fit


def small(**sizes):
    return ViT(Config(10, **{"width": 32, "layers": "softmax*2", "heads": 2} | sizes), (8, 8), 2)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="patch"):
        ViT(Config(10, 32, heads=2), (8, 8), 3)
    with pytest.raises(ValueError, match="images"):
        small()(torch.zeros(1, 1, 10, 8))
    with pytest.raises(ValueError, match="pattern"):
        small(layers="mamba2")


def test_digits_are_learned():
    """Three hundred steps tell held-out digits apart; the order of the patches matters."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = shuffled[:1400], shuffled[1400:]
    model = small()

    def loss(ready, generator):
        rows = train[torch.randint(len(train), (64,), generator=generator)]
        return F.cross_entropy(ready(images[rows]), labels[rows])

    fit(model, loss, Recipe(300))
    with torch.no_grad():
        assert (model(images[test]).argmax(1) == labels[test]).float().mean() > 0.9
        assert not torch.allclose(model(images[:1]), model(images[:1].flip(2)))
