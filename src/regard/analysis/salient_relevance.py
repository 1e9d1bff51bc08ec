"""Salient relevance: what a convolutional network's class owes to each pixel, and where that stands out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.analysis.base import Result
from regard.core.atlas import Claim, published
from regard.core.errors import did_you_mean, wrong
from regard.core.kinds import Sample, shown_by

RULES = ("epsilon", "positive", "alpha_beta")
PASSED = (nn.ReLU, nn.Dropout, nn.Identity)
"""Layers that hand relevance on as it is."""
LINEAR = (nn.Linear, nn.Conv2d)
POOLED = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
SCALES, FINER, LEAST = (1.0, 0.8, 0.5, 0.3), (1.0, 0.5, 0.25), 0.2
"""Of the image that saliency is taken at, of these scales that a patch is compared with, and the smallest of all."""
NEAREST, APART, FOCUS = 64, 3.0, 0.8
"""Patches a patch is compared with, the weight of distances in the image, and the saliency of a focus."""


@dataclass(frozen=True)
class Relevance(Result):
    """What a class owes to the pixels of images.

    Args:
        pixels: ``(b, channels, y, x)``, whose sum is the logit but for what biases and ε take. salient: ``(b, y, x)``
            from 0 to 1, the SR map. logits: ``(b,)``, of the classes that were asked for.
    """

    pixels: Tensor
    salient: Tensor
    logits: Tensor
    name = "salient_relevance"

    def merge(self, other: Relevance) -> Relevance:
        """The images of both."""
        parts = ((getattr(self, name), getattr(other, name)) for name in ("pixels", "salient", "logits"))
        return Relevance(*(torch.cat(both) for both in parts))

    def table(self) -> list[dict[str, Any]]:
        sums = self.pixels.flatten(1).sum(1)
        return [
            {"image": i, "logit": float(logit), "relevance": float(sums[i]), "salient": float(self.salient[i].mean())}
            for i, logit in enumerate(self.logits)
        ]


@published(
    "salient_relevance",
    family="observe",
    kind="analysis",
    row=85,
    title="Beyond saliency: understanding convolutional neural networks from saliency prediction on layer-wise "
    "relevance propagation",
    arxiv="1712.08268",
    year=2017,
    aliases=("sr_map", "lrp"),
    fidelity="authors' code",
    missing="published networks (AlexNet, VGG) and photographs; saliency at each scale is scaled by its own maximum",
    claim=(
        Claim(
            "relevance is conserved: that of all pixels is the logit",
            cells="relevance.of_scenes",
            holds="relevance.is_conserved",
        ),
        Claim(
            "salient relevance covers a drawn object better than relevance does",
            cells="relevance.of_scenes",
            holds="relevance.covers_the_object",
        ),
        Claim(
            "the logit falls further without the most salient pixels than without random ones",
            cells="relevance.of_scenes",
            holds="relevance.matters",
        ),
    ),
)
@shown_by(lambda: [Sample("two layers", salient_relevance, {"known": two_layers})])
def salient_relevance(
    model: nn.Module, images: Tensor, classes: Tensor | None = None, conv: str = "epsilon", linear: str = "positive"
) -> Relevance:
    """Layer-wise relevance propagation from a logit to the pixels, and context-aware saliency of what it gives.

        R_i = Σ_j x_i w_ij R_j / (z_j + ε sign z_j),   z_j = Σ_i x_i w_ij + b_j        (``epsilon``, ε = 10⁻⁹)
        R_i = Σ_j x_i w⁺_ij R_j / Σ_i x_i w⁺_ij                                        (``positive``)

    ``alpha_beta`` takes twice the positive products' share less once the negative ones'. Pools share relevance as they
    do values; activations hand it on. The SR map is `context_aware` of |R|.

    Args:
        model: a sequence, or sequences of sequences, of convolutions, linear layers, ReLUs, pools and flattening, in
            evaluation. images: ``(b, channels, y, x)``. classes: ``(b,)``, None for the likeliest. conv, linear: the
            rule of convolutions and of linear layers; the defaults are the authors'.

    Raises:
        TypeError: a layer of another kind. LookupError: another rule.

    Paper: Li et al., arXiv 1712.08268; rules as in the authors' code, whose ε has no sign.
    """
    for name, rule in (("conv", conv), ("linear", linear)):
        if rule not in RULES:
            raise wrong(name, repr(rule), f"one of {', '.join(RULES)}{did_you_mean(rule, RULES)}", LookupError)
    with torch.no_grad():
        inputs, x = [], images
        for layer in leaves(model):
            inputs.append((layer, x))
            x = layer(x)
        asked = x.argmax(1) if classes is None else classes
        logits = x.gather(1, asked[:, None])[:, 0]
    relevance = torch.zeros_like(x).scatter(1, asked[:, None], logits[:, None])
    for layer, given in reversed(inputs):
        rule = {nn.Conv2d: conv, nn.Linear: linear}.get(type(layer), "epsilon")
        relevance = relevance if isinstance(layer, PASSED) else handed_back(layer, given, relevance, rule)
    return Relevance(relevance, context_aware(relevance.abs()), logits)


def leaves(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a sequence in order.

    Raises:
        TypeError: one that relevance cannot be handed through.
    """
    if isinstance(model, nn.Sequential):
        for part in model:
            yield from leaves(part)
    elif isinstance(model, (*PASSED, *LINEAR, *POOLED)):
        yield model
    else:
        known = ", ".join(kind.__name__ for kind in (nn.Sequential, *LINEAR, *POOLED, *PASSED))
        raise wrong("model", f"a {type(model).__name__}", f"sequences of {known}", TypeError)


def handed_back(layer: nn.Module, x: Tensor, relevance: Tensor, rule: str, eps: float = 1e-9) -> Tensor:
    """The relevance of a layer's inputs ``x``, from that of its outputs.

    Written as x ∂(z · s)/∂x with s = R / z: one backward pass of the layer.
    """
    if rule == "epsilon":
        return share(layer, x, relevance, eps)
    assert isinstance(layer, LINEAR)
    positive = share_of_sign(layer, x, relevance, 1, eps)
    return positive if rule == "positive" else 2 * positive - share_of_sign(layer, x, relevance, -1, eps)


def share(layer: Any, x: Tensor, relevance: Tensor, eps: float) -> Tensor:
    """Relevance by each input's share of each output."""
    with torch.enable_grad():
        given = x.detach().requires_grad_(True)
        z = layer(given)
        ratio = relevance / (z + torch.where(z < 0, -eps, eps)).detach()
        (slope,) = torch.autograd.grad(z, given, ratio)
    return x * slope


def share_of_sign(layer: nn.Module, x: Tensor, relevance: Tensor, sign: int, eps: float) -> Tensor:
    """The same of the products x w of one sign alone, without bias."""
    weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
    ups, downs = weight.clamp(min=0), weight.clamp(max=0)
    ways = list(zip((ups, downs) if sign > 0 else (downs, ups), (x.clamp(min=0), x.clamp(max=0)), strict=True))
    with torch.enable_grad():
        given = [part.detach().requires_grad_(True) for _, part in ways]
        products = [plain(layer, part, weight) for part, (weight, _) in zip(given, ways, strict=True)]
        z = products[0] + products[1]
        ratio = relevance / (z + sign * eps).detach()
        slopes = torch.autograd.grad(z, given, ratio)
    return sum(part * slope for (_, part), slope in zip(ways, slopes, strict=True))  # pyright: ignore


def plain(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """A linear layer or convolution with other weights and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros":
        raise wrong("model", f"padding with {layer.padding_mode!r}", "padding with zeros")
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def context_aware(maps: Tensor, patch: int = 7) -> Tensor:
    """Context-aware saliency ``(b, y, x)`` of maps ``(b, channels, y, x)``: where patches are unlike all others.

        d(p, q) = d_values / (1 + 3 d_places),   S_p = 1 − exp(−mean over the 64 nearest q of d(p, q))
        S = mean over scales of S / max S,   SR = S (1 − distance to the nearest S > 0.8)

    Maps go from 0 to 1 in each image; d_values is the root of the mean square of the patches' differences, places are
    in units of the longer side. Patches of a scale are compared with those of this, half and a quarter of it.

    Paper: Goferman, Zelnik-Manor and Tal, TPAMI 2012; that scales are normed by their maximum is ours.
    """
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    even = (maps - low) / (high - low).clamp(min=1e-30)
    size = maps.shape[2:]
    total = maps.new_zeros(len(maps), 1, *size)
    for scale in SCALES:
        others = [scale * finer for finer in FINER if scale * finer >= LEAST]
        found = distinct(*patches(even, scale, patch), *several(even, others, patch))
        shape = scaled(size, scale)
        one = found.view(-1, 1, *shape)
        one = one / one.amax((2, 3), keepdim=True).clamp(min=1e-30)
        total += F.interpolate(one, size=size, mode="bilinear", align_corners=False) / len(SCALES)
    return total[:, 0] * (1 - to_focus(total[:, 0]))


def scaled(size: torch.Size, scale: float) -> tuple[int, int]:
    """Height and width at a scale."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def patches(maps: Tensor, scale: float, patch: int) -> tuple[Tensor, Tensor]:
    """Patches around every pixel ``(b, pixels, values)`` of a scale, their edges repeated, and their places."""
    shape = scaled(maps.shape[2:], scale)
    small = F.interpolate(maps, size=shape, mode="bilinear", align_corners=False, antialias=True)
    wide = F.pad(small, [patch // 2] * 4, mode="replicate")
    y, x = (torch.arange(n, dtype=maps.dtype, device=maps.device) + 0.5 for n in shape)
    long = max(shape)
    places = torch.cartesian_prod(y / long, x / long)
    return F.unfold(wide, patch).mT, places


def several(maps: Tensor, scales: list[float], patch: int) -> tuple[Tensor, Tensor]:
    """The patches of several scales together."""
    both = [patches(maps, scale, patch) for scale in scales]
    return torch.cat([of for of, _ in both], 1), torch.cat([places for _, places in both])


def distinct(of: Tensor, at: Tensor, others: Tensor, their: Tensor) -> Tensor:
    """``(b, pixels)``: how unlike its nearest others each patch is; itself is one of them, at no distance."""
    values = torch.cdist(of, others) / of.shape[2] ** 0.5
    apart = values / (1 + APART * torch.cdist(at, their))
    nearest = apart.topk(min(NEAREST + 1, apart.shape[2]), largest=False).values[..., 1:]
    return 1 - torch.exp(-nearest.mean(2))


def to_focus(saliency: Tensor) -> Tensor:
    """``(b, y, x)``: how far the nearest focus is, in units of the longer side; 0 everywhere where there is none."""
    y, x = saliency.shape[1:]
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=saliency.dtype, device=saliency.device) for n in (y, x)))
    apart = torch.cdist(grid, grid) / max(y, x)
    found = []
    for one in saliency.flatten(1):
        foci = one > FOCUS
        found.append(apart[:, foci].min(1).values if bool(foci.any()) else torch.zeros_like(one))
    return torch.stack(found).view_as(saliency).clamp(max=1)


def two_layers() -> tuple[Tensor, Tensor]:
    """Pixels 1 and 2, hidden (1·1 + 2·1, 1·(−1) + 2·1) = (3, 1), logit 3 · 2 + 1 · (−1) = 5.

    By the positive products of the last layer alone the first hidden unit gets 5 and the second 0; by ``epsilon`` in
    the first, the pixels get 5/3 and 10/3. With ``epsilon`` in both, 6 and −1 come back as 6/3 + 1 and 12/3 − 2.
    """
    first, last = nn.Conv2d(2, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[..., None, None])
        last.weight.copy_(torch.tensor([[2.0, -1.0], [0.0, 0.0]]))
    model = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(1), nn.Flatten(), last)
    image = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    ways = [salient_relevance(model, image, linear=rule).pixels.flatten() for rule in ("positive", "epsilon")]
    return torch.cat(ways).detach(), torch.tensor([5 / 3, 10 / 3, 3.0, 2.0])
