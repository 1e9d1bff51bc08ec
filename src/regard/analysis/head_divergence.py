"""How unlike heads are: Jensen–Shannon divergences of their rows, clusters, and what a loss owes to each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, Head, HeadAnalysis, Prompt, Result
from regard.analysis.flow import WatchedMaps
from regard.analysis.planted import samples
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.probes.places import Offsets, OnTokens

SMOOTHING = 1e-3
"""Mass of each row that is spread evenly before divergences are taken, as in the authors' code."""


class DelimiterHeads(HeadAnalysis):
    """Mean weight on delimiters, such as [SEP], [CLS], full stops. Paper: Clark et al., arXiv 1906.04341.

    Args:
        ids: of the delimiters.
    """

    name, threshold = "delimiter", 0.5

    @classmethod
    def examples(cls) -> list[Sample]:
        draw = torch.Generator().manual_seed(6)
        texts = [Prompt(torch.randint(1, 9, (23,), generator=draw)) for _ in range(3)]
        for text in texts:
            text.ids[:3] = 0
        return samples(cls([0]), texts, lambda ids: torch.zeros_like(ids), threshold=0.8)

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = tuple(ids)
        if not self.ids:
            raise wrong("ids", "none", "the ids of delimiters")

    def probe(self, prompt: Prompt) -> OnTokens:
        return OnTokens({self.name: self.ids})

    def found(self, probe: Any) -> dict[int, Any]:
        return {layer: first_of(seen) for layer, seen in probe.moments.items()}


class NextTokenHeads(HeadAnalysis):
    """Mean weight on the token after, which encoders see. Paper: Clark et al., arXiv 1906.04341."""

    name, threshold = "next_token", 0.5

    def probe(self, prompt: Prompt) -> Offsets:
        return Offsets((1,))

    def found(self, probe: Any) -> dict[int, Any]:
        return {layer: first_of(seen) for layer, seen in probe.moments.items()}


def first_of(seen: Any) -> Any:
    """The moments of the only value that a head has, ``(heads, 1)`` made ``(heads,)``."""
    return type(seen)(seen.count, seen.population, seen.total[:, 0], seen.squares[:, 0])


@dataclass(frozen=True)
class Divergences(Result):
    """How far the rows of every two heads are apart.

    Args:
        heads: in their order. values: ``(heads, heads)`` float64, sums over all rows, in nats. rows: how many.
    """

    heads: tuple[Head, ...]
    values: Tensor
    rows: int
    name = "head_divergence"

    def merge(self, other: Divergences) -> Divergences:
        """Over the rows of both.

        Raises:
            ValueError: other heads.
        """
        if self.heads != other.heads:
            raise wrong("other", f"{len(other.heads)} heads", f"the same {len(self.heads)}")
        return Divergences(self.heads, self.values + other.values, self.rows + other.rows)

    @property
    def mean(self) -> Tensor:
        """``(heads, heads)``: of a row, from 0 to log 2."""
        return self.values / self.rows

    def clusters(self, count: int) -> dict[Head, int]:
        """The heads in ``count`` groups, by average linkage.

        Raises:
            ValueError: fewer than two heads, or not so many.
        """
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform

        if not 1 <= count <= len(self.heads) or len(self.heads) < 2:
            raise wrong("count", str(count), f"at least 1, and at most the {len(self.heads)} heads, two or more")
        tree = linkage(squareform(self.mean.numpy(), checks=False), "average")
        return dict(zip(self.heads, fcluster(tree, count, "maxclust").tolist(), strict=True))

    def plane(self, dimensions: int = 2) -> Tensor:
        """``(heads, dimensions)``: classical multidimensional scaling of the mean divergences."""
        n = len(self.heads)
        centre = torch.eye(n, dtype=torch.float64) - 1 / n
        values, vectors = torch.linalg.eigh(-centre @ self.mean.square() @ centre / 2)
        return (vectors * values.clamp(min=0).sqrt())[:, -dimensions:].flip(1)

    def table(self) -> list[dict[str, Any]]:
        """The nearest other head of each."""
        far = self.mean + torch.eye(len(self.heads)) * 1e9
        nearest = far.argmin(1).tolist()
        return [
            {"layer": layer, "head": head, "nearest": f"L{self.heads[at][0]}H{self.heads[at][1]}"}
            | {"divergence": float(self.mean[i, at])}
            for i, ((layer, head), at) in enumerate(zip(self.heads, nearest, strict=True))
        ]


class HeadDivergence(Analysis[Prompt, Divergences]):
    """Jensen–Shannon divergence of every two heads' rows, Σ_i JS(A_i, B_i), over all rows of all texts.

        JS(a, b) = ½ Σ_j a_j log(a_j / m_j) + ½ Σ_j b_j log(b_j / m_j),   m = (a + b) / 2

    Rows are smoothed first, a ← 0.999 a + 0.001 / n, as in the authors' code. Every map of a text is formed.

    Paper: Clark et al., arXiv 1906.04341.
    """

    name = "head_divergence"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("by hand", cls(), {"known": by_hand})]

    def run(self, subject: Any, data: Iterable[Prompt]) -> Divergences:
        found: Divergences | None = None
        for prompt in data:
            maps = every_map(subject, prompt.ids)
            heads = tuple((layer, h) for layer, of in enumerate(maps) for h in range(len(of)))
            one = Divergences(heads, divergences(torch.cat(maps).double()), len(prompt.ids))
            found = one if found is None else found.merge(one)
        if found is None:
            raise wrong("data", "no prompts", "at least one")
        return found


def every_map(subject: Any, ids: Tensor) -> list[Tensor]:
    """A of each layer ``(heads, n, n)``, of a Transformers model, or of a subject's ``maps``."""
    if hasattr(subject, "maps"):
        return [of[0] for of in subject.maps(ids[None])]
    source, rows = WatchedMaps(subject, ids), torch.arange(len(ids))
    found = []
    for layer in range(source.layers):
        weights, start = source.rows(layer, rows)
        whole = weights.new_zeros(len(weights), len(ids), len(ids))
        whole[..., start : start + weights.shape[2]] = weights
        found.append(whole)
    return found


def divergences(maps: Tensor) -> Tensor:
    """``(heads, heads)``: sums over the rows of ``maps (heads, n, n)`` of their Jensen–Shannon divergences."""
    smooth = (1 - SMOOTHING) * maps + SMOOTHING / maps.shape[2]
    own = (smooth * smooth.log()).sum((1, 2))
    rows = []
    for one in smooth:
        middle = (one + smooth) / 2
        rows.append(-(middle * middle.log()).sum((1, 2)))
    return torch.stack(rows) + (own[:, None] + own) / 2


def attention_gradients(model: Any, ids: Tensor, loss: Callable[[Any], Tensor]) -> list[Tensor]:
    """∂L/∂A_ij of every layer, ``(heads, n, n)``: v_j · ∂L/∂z_i, so that no map is formed by the model.

    Args:
        model: a Transformers model. ids: ``(n,)``. loss: from the model's output to a number.

    Paper: Clark et al., arXiv 1906.04341, who take the loss of masked words.
    """
    trace = Trace("z", "v")
    with torch.enable_grad(), attach(model, edits=[trace]):
        value = loss(model(input_ids=ids[None].to(model.device)))
        layers = sorted(layer for site, layer in trace.kept if site == "z")
        outputs = [trace.get("z", layer) for layer in layers]
        slopes = torch.autograd.grad(value, outputs)
    found = []
    for layer, slope in zip(layers, slopes, strict=True):
        values = trace.get("v", layer).detach()
        values = values.repeat_interleave(slope.shape[1] // values.shape[1], 1)
        found.append((slope @ values.mT)[0].cpu())
    return found


def by_hand() -> tuple[Tensor, Tensor]:
    """Rows (1, 0) and (0, 1), smoothed to 0.9995 and 0.0005, are log 2 less the entropy of such a row apart."""
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    found = divergences(torch.stack([one, one.flip(1), one]))
    p = torch.tensor([0.9995, 0.0005], dtype=torch.float64)
    far = 2 * (torch.log(torch.tensor(2.0, dtype=torch.float64)) + (p * p.log()).sum())
    apart = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64)
    return found, far * apart
