"""Pretraining on masked images: convolutions that see some patches alone, and a light decoder that draws the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.errors import wrong

EPS = 1e-6


class Pyramidal(Protocol):
    """What has maps of falling resolution, each half of the one before it."""

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The maps, fine to coarse."""
        ...


def spread(kept: Tensor, like: Tensor) -> Tensor:
    """What is kept of patches ``(b, 1, y, x)``, for each cell of a map."""
    y, x = (n // m for n, m in zip(like.shape[2:], kept.shape[2:], strict=True))
    return kept.repeat_interleave(y, 2).repeat_interleave(x, 3)


def normed_where(norm: nn.BatchNorm2d, kept: Tensor, input: Tensor) -> Tensor:
    """The batch norm over the cells that are kept, zero elsewhere."""
    there = spread(kept, input)[:, 0]
    cells = input.movedim(1, -1)[there]
    own = norm.training or norm.running_mean is None
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    share = norm.momentum
    if share is None:
        share = 1 / float(norm.num_batches_tracked or 1)
    found = F.batch_norm(cells, norm.running_mean, norm.running_var, norm.weight, norm.bias, own, share, norm.eps)
    return torch.zeros_like(input.movedim(1, -1)).masked_scatter(there[..., None], found).movedim(-1, 1)


@contextmanager
def sparse(module: nn.Module, kept: Tensor) -> Iterator[None]:
    """Inside, convolutions and pools of the module give zero outside of the patches that are kept, and batch norms are
    those of what is kept: no cell sees that something is hidden.

    Args:
        kept: ``(b, 1, y, x)`` bool, of the patches of an image whose maps have whole cells of each.
    """

    def shown(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out * spread(kept, out)

    layers = [each for each in module.modules() if isinstance(each, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
    hooks = [each.register_forward_hook(shown) for each in layers]
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    for each in norms:
        each.forward = partial(normed_where, each, kept)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for each in norms:
            del each.forward


class Doubled(nn.Module):
    """``norm(W_2 relu6(norm(W_1 U x)))``: U doubles rows and columns, W_1 and W_2 are convolutions 3 × 3."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inside, inside, 4, 2, 1)
        self.first, self.norm = nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        self.last, self.last_norm = nn.Conv2d(inside, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_norm(self.last(F.relu6(self.norm(self.first(self.up(x))))))


class MaskedImages(nn.Module):
    """Sparse masked modelling: a backbone sees ``share`` of an image's patches, a decoder draws the others.

        m_l = W_l [norm(c_l) where a patch is kept, e_l elsewhere],   d ← double(d + m_l) from the coarsest on
        loss = mean over the hidden patches of (V d − (x − mean(x)) / std(x))²,  mean and std of each patch

    The backbone is left as it was, but for its weights: `loss` is all that training needs.

    Args:
        backbone: with ``features``. widths: of its maps, fine to coarse. steps: pixels from cell to cell of the
            coarsest, a power of two; a patch has as many a side. width: of the decoder at the coarsest, halved at each
            doubling. share: of the patches that are seen. seed: of the weights.

    Raises:
        ValueError: steps that are no power of two or fewer than the maps' halvings; a width that they do not divide; a
            share that is none. In a call, sides that are no multiples of the steps.

    Paper: Tian et al. (SparK), arXiv 2301.03580, which Gold-YOLO's backbones begin with.
    """

    def __init__(
        self,
        backbone: Pyramidal,
        widths: Sequence[int],
        steps: int = 32,
        width: int = 512,
        share: float = 0.4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        halvings = steps.bit_length() - 1
        if steps != 2**halvings or halvings < len(widths) or width % steps or not 0 < share < 1:
            came = f"{steps}, {width}, {share}"
            raise wrong("steps, width, share", came, "a power of two, a multiple of it, a share of the patches")
        self.backbone, self.steps, self.share = backbone, steps, share
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.norms = nn.ModuleList(nn.BatchNorm2d(each) for each in reversed(widths))
            self.tokens = nn.ParameterList(
                nn.init.trunc_normal_(torch.empty(1, each, 1, 1), std=0.02, a=-0.02, b=0.02)
                for each in reversed(widths)
            )
            coarse = [width // 2**n for n in range(halvings + 1)]
            into = [
                nn.Identity()
                if not n and each == width
                else nn.Conv2d(each, coarse[n], 3 if n else 1, padding=min(n, 1))
                for n, each in enumerate(reversed(widths))
            ]
            self.into = nn.ModuleList(into)
            self.doubled = nn.ModuleList(Doubled(a, b) for a, b in itertools.pairwise(coarse))
            self.colours = nn.Conv2d(coarse[-1], 3, 1)

    def seen(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Which patches are seen ``(b, 1, y, x)``: as many of each image, drawn."""
        y, x = (n // self.steps for n in images.shape[2:])
        order = torch.rand(len(images), y * x, generator=generator).argsort(1)[:, : round(y * x * self.share)]
        kept = torch.zeros(len(images), y * x, dtype=torch.bool).scatter(1, order, True)
        return kept.unflatten(1, (1, y, x)).to(images.device)

    def forward(self, images: Tensor, kept: Tensor) -> Tensor:
        """What is drawn ``(b, 3, y, x)``, each patch about its mean and by its deviation; of images whose patches
        ``kept (b, 1, y, x)`` are seen."""
        if any(n % self.steps for n in images.shape[2:]):
            raise wrong("images", f"{tuple(images.shape[2:])}", f"multiples of {self.steps}")
        with sparse(self.backbone, kept):  # pyright: ignore[reportArgumentType]
            maps = list(self.backbone.features(images * spread(kept, images)))
        given = []
        with sparse(self.norms, kept):
            for norm, token, into, each in zip(self.norms, self.tokens, self.into, reversed(maps), strict=True):
                given.append(into(torch.where(spread(kept, each), norm(each), token)))
        found = images.new_zeros(())
        for n, doubled in enumerate(self.doubled):
            found = doubled(found + given[n] if n < len(given) else found)
        return self.colours(found)

    def loss(self, images: Tensor, generator: Generator | None = None, kept: Tensor | None = None) -> Tensor:
        """The mean square over the patches that are hidden; ``kept`` in place of drawn ones."""
        kept = self.seen(images, generator) if kept is None else kept
        drawn, true = (patches(each, self.steps) for each in (self(images, kept), images))
        true = (true - true.mean(-1, keepdim=True)) / (true.var(-1, keepdim=True) + EPS).sqrt()
        hidden = ~kept.flatten(1)
        return ((drawn - true).square().mean(-1) * hidden).sum() / (hidden.sum() + 1e-8)


def patches(images: Tensor, side: int) -> Tensor:
    """``(b, patches, side · side · c)``, row by row."""
    return F.pixel_unshuffle(images, side).flatten(2).mT
