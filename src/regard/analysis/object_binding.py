"""Object binding: whether two patches of an image belong to the same object, as their hidden states tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.analysis.base import Result
from regard.core.atlas import Claim, published
from regard.core.errors import did_you_mean, wrong
from regard.core.kinds import Sample, shown_by

Form = Literal["linear", "diagonal", "quadratic"]


class PairProbe(nn.Module):
    """The logit that two states belong to the same object.

        linear: w · x + w · y + 2 b,   diagonal: w · (x ⊙ y) + b,   quadratic: xᵀ (W + Wᵀ) y / (2 √c) + b

    Shapes: ``(b, n, c)`` -> ``(b, n, n)``.

    Args:
        width: c. form: which of them. seed: of the weights.

    Raises:
        LookupError: another form.
    """

    def __init__(self, width: int, form: Form = "quadratic", seed: int = 0) -> None:
        super().__init__()
        if form not in get_args(Form):
            wanted = f"one of {', '.join(get_args(Form))}{did_you_mean(form, get_args(Form))}"
            raise wrong("form", repr(form), wanted, LookupError)
        self.form: Form = form
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.map = nn.Linear(width, width if form == "quadratic" else 1)

    @property
    def symmetric(self) -> Tensor:
        """``(c, c)``: W of the quadratic form."""
        return (self.map.weight + self.map.weight.T) / (2 * self.map.in_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "linear":
            each = self.map(x)
            return each + each.mT
        if self.form == "diagonal":
            return (x * self.map.weight[0]) @ x.mT + self.map.bias[0]
        return x @ self.symmetric @ x.mT + self.map.bias[0]

    @torch.no_grad()
    def directions(self, count: int) -> Tensor:
        """``(count, c)`` orthonormal: the directions of the quadratic form's largest eigenvalues, of either sign.

        Raises:
            ValueError: another form, or more than there are.
        """
        if self.form != "quadratic" or not 0 < count <= self.map.in_features:
            raise wrong("count", f"{count} of a {self.form} probe", f"1 to {self.map.in_features} of a quadratic one")
        values, vectors = torch.linalg.eigh(self.symmetric.double())
        return vectors[:, values.abs().argsort(descending=True)[:count]].T.to(self.map.weight.dtype)


@dataclass(frozen=True)
class Binding(Result):
    """How well pairs of patches are told, by layer and by probe.

    Args:
        right: ``(layers, forms)``, the share of pairs of an image told rightly, each patch with itself among them, of
            images that were not fitted; pairs: how many. forms: the probes. probes: they themselves, by layer and form.
    """

    right: Tensor
    pairs: int
    forms: tuple[str, ...]
    probes: tuple[tuple[nn.Module, ...], ...] = ()
    name = "object_binding"

    def best(self, form: str) -> tuple[int, float]:
        """The layer in which a probe tells most pairs, and its share."""
        row = self.right[:, self.forms.index(form)]
        return int(row.argmax()), float(row.max())

    def merge(self, other: Binding) -> Binding:
        """The shares over the pairs of both, told by the same kinds of probes.

        Raises:
            ValueError: other probes or layers.
        """
        if (self.forms, self.right.shape) != (other.forms, other.right.shape):
            raise wrong("other", f"{other.forms} in {len(other.right)} layers", "the same probes in the same layers")
        total = self.pairs + other.pairs
        return Binding((self.right * self.pairs + other.right * other.pairs) / total, total, self.forms)

    def table(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "probe": form, "right": float(x)}
            for layer, row in enumerate(self.right)
            for form, x in zip(self.forms, row, strict=True)
        ]


@published(
    "object_binding",
    family="observe",
    kind="analysis",
    row=87,
    title="Does Object Binding Naturally Emerge in Large Pretrained Vision Transformers?",
    arxiv="2510.24709",
    year=2025,
    aliases=("issameobject", "is_same_object"),
    missing="published vision transformers and photographs, the instance probe",
    fidelity="authors' code",
    claim=(
        Claim(
            "a network that learned to fill in patches knows which are of one object, better than their classes tell",
            cells="binding.of_scenes",
            holds="binding.is_told",
        ),
        Claim(
            "it has learned that: the same probe of the network as it began tells less",
            cells="binding.of_scenes",
            holds="binding.is_learned",
        ),
        Claim(
            "without the directions of the probe patches are filled in worse, and worse than without random ones",
            cells="binding.of_scenes",
            holds="binding.is_used",
        ),
    ),
)
@shown_by(lambda: [Sample("three patches", object_binding, {"known": three_patches})])
def object_binding(
    layers: Sequence[tuple[Tensor, Tensor]],
    objects: tuple[Tensor, Tensor],
    classes: tuple[Tensor, Tensor] | None = None,
    forms: Sequence[str] = ("quadratic", "diagonal", "linear"),
    steps: int = 300,
    batch: int = 32,
    rate: float = 1e-3,
    seed: int = 0,
) -> Binding:
    """Whether patches belong to the same object, by probes of their states, fitted to some images and asked of others.

    Every pair of an image is a case, each patch with itself too; the loss is the cross-entropy of `PairProbe`'s logits.
    ``classes`` adds the probe ``"class"``: a linear one of each patch's class, by which patches of one class are of one
    object. Patches of the background are of one object, 0.

    Args:
        layers: of each, states ``(images, patches, c)`` to fit and to ask. objects: ``(images, patches)`` int64 of
            either. classes: the same. forms: the probes. steps, batch, rate: of Adam. seed: of weights and batches.

    Paper: Li et al., arXiv 2510.24709; probes, rate and what counts as right as in the authors' code.
    """
    right, probes = [], []
    for fitted, asked in layers:
        some: list[nn.Module] = [
            fit_pairs(fitted, objects[0], cast(Form, form), steps, batch, rate, seed) for form in forms
        ]
        shares = [share_right(probe(asked.float()) > 0, objects[1]) for probe in some]
        if classes is not None:
            some.append(fit_classes(fitted, classes[0], steps, batch, rate, seed))
            told = some[-1](asked.float()).argmax(-1)
            shares.append(share_right(told[:, :, None] == told[:, None], objects[1]))
        right.append(shares)
        probes.append(tuple(some))
    images, patches = objects[1].shape
    named = (*forms, *(["class"] if classes is not None else []))
    return Binding(torch.tensor(right), images * patches * (patches + 1) // 2, named, tuple(probes))


def share_right(told: Tensor, objects: Tensor) -> float:
    """The share of pairs ``(images, n, n)`` that are told rightly, above and on the diagonal."""
    n = objects.shape[1]
    hits = told == (objects[:, :, None] == objects[:, None])
    return float(hits[:, torch.ones(n, n, dtype=torch.bool).triu()].double().mean())


def fit_pairs(states: Tensor, objects: Tensor, form: Form, steps: int, batch: int, rate: float, seed: int) -> PairProbe:
    """A probe after so many steps on all pairs of the patches of a batch of images."""
    probe = PairProbe(states.shape[2], form, seed)

    def loss(rows: Tensor) -> Tensor:
        same = objects[rows, :, None] == objects[rows, None]
        return F.binary_cross_entropy_with_logits(probe(states[rows].float()), same.float())

    return descend(probe, loss, len(states), steps, batch, rate, seed)


def fit_classes(states: Tensor, classes: Tensor, steps: int, batch: int, rate: float, seed: int) -> nn.Linear:
    """A linear probe of the class of each patch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = nn.Linear(states.shape[2], int(classes.max()) + 1)

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(probe(states[rows].float()).flatten(0, 1), classes[rows].flatten())

    return descend(probe, loss, len(states), steps, batch, rate, seed)


@torch.enable_grad()
def descend(probe: Any, loss: Any, images: int, steps: int, batch: int, rate: float, seed: int) -> Any:
    """Adam on batches of images."""
    draw, optimiser = Generator().manual_seed(seed), torch.optim.Adam(probe.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(torch.randint(images, (batch,), generator=draw)).backward()
        optimiser.step()
    return probe.eval().requires_grad_(False)


def projected_out(x: Tensor, directions: Tensor) -> Tensor:
    """States ``(b, n, c)`` of which all have in ``directions (r, c)``, orthonormal, what those of their image have on
    average."""
    return x - (x - x.mean(1, keepdim=True)) @ directions.T @ directions


def three_patches() -> tuple[Tensor, Tensor]:
    """Pairs of three states that the probes tell by hand."""
    x, found = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]]]), []
    weights: dict[Form, Any] = {"linear": [[2, -1]], "diagonal": [[2, -1]], "quadratic": [[3, 4], [0, -2]]}
    for form, weight in weights.items():
        probe = PairProbe(2, form)
        with torch.no_grad():
            probe.map.weight.copy_(torch.tensor(weight))
            probe.map.bias.fill_(0.5)
        found.append(probe(x)[0].detach())
    linear = torch.tensor([[5.0, 3, 2], [3, 1, 0], [2, 0, -1]])
    diagonal = torch.tensor([[2.0, 2, 0], [2, -2, -2], [0, -2, -1]]) + 0.5
    quadratic = torch.tensor([[3.0, 7, 2], [7, 3, -2], [2, -2, -2]]) / 2**0.5 + 0.5
    return torch.stack(found), torch.stack([linear, diagonal, quadratic])
