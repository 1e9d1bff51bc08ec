"""What vision transformers' states and maps show: outliers of few neurons, how far attention reaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

import regard
from regard.analysis.attention_distance import attention_distance
from regard.analysis.register_neurons import register_neurons, registers, seen_by
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.maps import drawn
from regard.core.layout import Layout
from regard.networks.vision.ifam import FaithfulViT

PLANTED = ((1, 5), (1, 17), (1, 40))
"""Layers and neurons that write outliers."""


def with_outliers(seed: int) -> nn.Module:
    """A random vision transformer of four layers, in which a bright patch drives three neurons that write far out."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    model: Any = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    bright = model.embeddings.patch_embeddings.projection.weight.sum((1, 2, 3))
    bright = bright / bright.norm()
    with torch.no_grad():
        for layer, neuron in PLANTED:
            mlp = model.layers[layer].mlp
            mlp.fc1.weight[neuron] = 4 * bright
            mlp.fc1.bias[neuron] = -12
            mlp.fc2.weight[:, neuron] = 10 * torch.randn(32)
    return model


@measured(seed=(0, 1, 2))
def outliers(seed: int) -> dict[str, float | bool]:
    """Largest norms of patches before, with found neurons in a register and with random ones; how many are found."""
    model, generator = with_outliers(seed), torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(6, 3, 32, 32, generator=generator)
    for image in images:
        y, x = (8 * torch.randint(4, (2,), generator=generator)).tolist()
        image[:, y : y + 8, x : x + 8] += 3
    found = register_neurons(model, images, len(PLANTED))
    random = [
        (int(torch.randint(4, (), generator=generator)), int(torch.randint(64, (), generator=generator)))
        for _ in PLANTED
    ]
    norms: dict[str, float] = {"before": seen_by(model, images)[0][:, 1:].norm(dim=-1).max().item()}
    for name, neurons in (("moved", found), ("random", random)):
        with registers(model, neurons) as extra:
            states = seen_by(model, images)[0][:, 1:]
        norms[name] = states.norm(dim=-1).max().item()
        norms[f"{name} register"] = extra[0].norm(dim=-1).max().item()
    return {"right": len(set(found) & set(PLANTED)), **norms}


def finds_the_planted(found: Figures) -> Finding:
    """All three, in each run."""
    right = found("right")
    return Finding.of(f"{listed(right, 'd')} of {len(PLANTED)}", all(each == len(PLANTED) for each in right))


def moves_the_outliers(found: Figures) -> Finding:
    """Patches fall to a fifth, the register has at least half of what they had; random neurons leave 90%."""
    before, moved, register, random = (found(name) for name in ("before", "moved", "moved register", "random"))
    figure = f"largest norm of a patch {listed(before, '.0f')} to {listed(moved, '.1f')}, of the register "
    figure += f"{listed(register, '.0f')}; with random neurons {listed(random, '.0f')}"
    pairs = list(zip(before, moved, register, random, strict=True))
    return Finding.of(figure, all(5 * m <= b and 2 * r >= b and other >= 0.9 * b for b, m, r, other in pairs))


@measured(sharp=(1, 4))
def distances(sharp: int) -> dict[str, float]:
    """The mean distance of windows of 3, 5 and 7 cells a side, and of all cells, on 9 × 11 cells."""
    q, k = drawn(2, 2, 3, 99, 8)
    layout, found = Layout(grid=(9, 11)), {}
    for side in (3, 5, 7):
        weights = regard.build("neighborhood", window=(side, side)).weights(sharp * q, k, layout)
        found[f"window {side}"] = attention_distance(weights, (9, 11)).mean().item()
    return found | {"all": attention_distance(regard.build("softmax").weights(sharp * q, k), (9, 11)).mean().item()}


def grow_with_the_window(found: Figures) -> Finding:
    """3, 5, 7 and all in this order; none further than its window's corner, which at a border is a side away."""
    names = ("window 3", "window 5", "window 7", "all")
    rows = [[row[name] for name in names] for row in found.rows]
    bounds = [2**0.5 * (side - 1) for side in (3, 5, 7)]
    figure = "; ".join(f"{listed(row, '.2f')} cells" for row in rows)
    inside = all(value <= bound for row in rows for value, bound in zip(row, bounds, strict=False))
    return Finding.of(figure, all(row == sorted(row) for row in rows), inside)


@measured(seed=(0, 1, 2))
def faithful(seed: int) -> dict[str, float | bool]:
    """Whether other pixels in hidden patches change the second stage's logits; by how much where only pooling hides."""
    torch.manual_seed(seed)
    net = FaithfulViT(5, 3, 12, 2, 17, 3, 4, 4, seed=seed).eval()
    images, kept = torch.randn(4, 3, 16, 16), torch.rand(4, 16) < 0.5
    hidden = (~kept).view(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = torch.where(hidden, torch.randn_like(images) * 9, images)
    with torch.no_grad():
        same = torch.equal(net.second(images, kept), net.second(changed, kept))
        late = [
            (net.two(each)[:, 1:] * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True) for each in (images, changed)
        ]
    return {"same": same, "late": (late[0] - late[1]).abs().max().item(), "hidden": hidden.float().mean().item()}


def is_exactly_faithful(found: Figures) -> Finding:
    """Bit by bit, with something hidden; hidden late, by more than 0.01."""
    same, late, hidden = (found(name) for name in ("same", "late", "hidden"))
    figure = f"the same bit by bit in {sum(same)} of {len(same)} runs with {listed(hidden, '.0%')} hidden; hidden late "
    return Finding.of(
        figure + f"off by {listed(late, '.2g')}", all(same), min(late) > 0.01, min(hidden) > 0, max(hidden) < 1
    )
