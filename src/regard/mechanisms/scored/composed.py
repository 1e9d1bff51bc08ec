"""Dense attention put together from a score, a bias, a normaliser and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.build import build_part
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, masked_softmax, repeat_heads
from regard.kernels.tiled import Score
from regard.mechanisms.scored.base import Scored
from regard.mechanisms.scored.parts.biases import BIASES, Bias
from regard.mechanisms.scored.parts.normalisers import NORMALISERS, Normaliser, Queries, Relu, Signed
from regard.mechanisms.scored.parts.scores import SCORES, Distance
from regard.mechanisms.scored.parts.tile_scores import Biased
from regard.mechanisms.scored.scaled import GatedSoftmax

Gate = Literal["heads", "silu", "sigmoid"]


@published(
    "composed",
    family="scored",
    title="Attention from parts: scores, biases and normalisers of many papers",
    year=2026,
    aliases=("dense_parts",),
    fidelity="third-party code",
    claim=Claim(
        (
            "a bucket of every distance, layers with relative bias and a window with a table equal those "
            "of Transformers' T5 and Swin"
        ),
        cells="composed.beside_transformers",
        holds="common.within(most=1e-6)",
    ),
)
class Composed(Scored):
    """Dense attention whose score, bias, normaliser and after-effects are chosen one by one.

        A = γ ⊙ normaliser(c tanh(score(q, k) / c) + bias),   out = gate ⊙ norm(A v)

    Each part is a name, or a name with arguments: ``composed(score=additive, bias=t5, normaliser=relu(power=2))``.

    | part | name | equation | paper |
    |---|---|---|---|
    | score | ``dot(scale)`` | scale q·k | 1706.03762 |
    | | ``additive`` | w · tanh(q + k) | 1409.0473 |
    | | ``network(hidden)`` | w · relu(W [q; k] + b) | 2502.17206 |
    | | ``distance(scale)`` | −scale ‖q − k‖² | 2006.04710 |
    | | ``bilinear`` | q · W k | 1508.04025 |
    | | ``trilinear`` | w · [q; k; q ⊙ k] | 1611.01603 |
    | | ``phase(share, power)`` | q_A·k_A cos(2π distance^α q_P·k_P) | 2509.12635 |
    | bias | ``none`` | 0, and rotary positions from the host | |
    | | ``alibi(slopes)`` | −s distance | 2108.12409 |
    | | ``t5(buckets, max_distance)`` | table[bucket(p − p')] | 1910.10683 |
    | | ``table(grid)`` | table[r − r'], r on a grid of 1 to 3 axes | 1803.02155, 2103.14030 |
    | | ``forget`` | Σ log f of the tokens after the key, up to the query | 2503.02130 |
    | normaliser | ``softmax(sinks)`` | exp s / (exp sink + Σ_j exp s) | 1706.03762 |
    | | ``sigmoid(bias)`` | 1 / (1 + exp(−s − b)) | 2409.04431 |
    | | ``relu(power)`` | max(s, 0)^α / (number of visible keys) | 2309.08586 |
    | | ``laplace`` | ½ (1 + erf((s − μ) / (σ√2))) | 2209.10655 |
    | | ``affine`` | α softmax(s) + β | 2602.23057 |
    | | ``signed`` | sign(s) softmax(abs s) | 2411.07176 |
    | | ``queries`` | softmax over queries, divided by its sum over keys; bidirectional | 2006.15055 |
    | after | ``norm`` | the host divides each head's output by its root mean square | |
    | | ``gate`` | ``heads``: γ, one a head; ``silu``, ``sigmoid``: the host's, of each element | 2505.06708 |

    γ ``gate``, α, β ``alpha``, ``beta`` and log f ``log_forget`` are signals; c is ``softcap``. Scores convolved over
    neighbours and mixed heads are `multi_token`; relations and heads that tokens weigh are projections (`dual`, `moh`).

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 (d + e) FLOPs for each score of the tiles (D for d with D hidden units), 2 (d + 1)
    more for ``queries``; memory O(n + m) and a tile, times the units in ``additive`` and ``network``. State: all keys
    and values. The softmax of dot products alone is faster as `softmax`.

    Args:
        score, bias, normaliser: the parts. heads, head_dim: of q, for the parts that learn. softcap: c, above zero, or
            None. norm, gate: what follows.

    Raises:
        ValueError: an unknown part or gate, one that cannot be positive under a normaliser that needs it, a softcap not
            above zero; q of other sizes; tokens beyond the grid. TypeError: an argument that a part does not take.
    """

    def __init__(
        self,
        score: str = "dot",
        bias: str = "none",
        normaliser: str = "softmax",
        heads: int = 4,
        head_dim: int = 64,
        softcap: float | None = None,
        norm: bool = False,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        if softcap is not None and not softcap > 0:
            raise wrong("softcap", str(softcap), "a positive number, or None")
        if gate is not None and gate not in get_args(Gate):
            raise wrong("gate", repr(gate), f"one of {', '.join(get_args(Gate))}, or None")
        sizes = {"heads": heads, "head_dim": head_dim}
        self.scorer: Scored = build_part(sizes, "score", score, SCORES)
        self.bias: Bias = build_part(sizes, "bias", bias, BIASES)
        self.normaliser: Normaliser = build_part(sizes, "normaliser", normaliser, NORMALISERS)
        self.softcap, self.gated = softcap, gate == "heads"
        negative = isinstance(self.scorer, Distance) and not self.bias.learned
        if negative and isinstance(self.normaliser, Relu | Signed):
            raise wrong("normaliser", repr(normaliser), "one for scores below zero, or a learned bias with distances")
        if not (self.normaliser.traits.causal or self.bias.bidirectional):
            raise wrong("bias", repr(bias), f"one of later keys too: {normaliser!r} is bidirectional")
        rows, cross = self.normaliser.traits.rows, self.scorer.traits.cross and not self.bias.placed
        self.traits = replace(
            self.normaliser.traits,
            rows="at most one" if rows and self.gated else rows,
            cross=cross,
            bidirectional=self.bias.bidirectional,
            masked=True,
            biased=not isinstance(self.normaliser, Queries),
            equivariant=cross,
        )
        own = GatedSoftmax.signals if self.gated else {}
        self.signals = {**self.scorer.signals, **self.bias.signals, **self.normaliser.signals, **own}
        rotary = self.scorer.layer.rotary and not self.bias.placed
        self.layer = LayerSpec(rotary, norm=norm, gate=None if gate == "heads" else gate)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Score:
        plain, bias = self.scorer.score(q, m, layout, **signals), self.bias.at(q, m, layout, **signals)
        return plain if bias is None and self.softcap is None else Biased(plain, bias, self.softcap)

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        return self.scorer.prepared(q, k, **signals)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        every = slice(0, q.shape[2])
        weights = self.normaliser.weigh(
            self.scores(q, k, layout, every, **signals), q.shape[2], layout, every, **signals
        )
        return self.opened(weights, every, signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        start, stop, _ = rows.indices(q.shape[2])
        rows, scores = slice(start, stop), self.scores(q, k, layout, rows, **signals)
        if isinstance(self.normaliser, Queries):  # all queries have a say, in tiles
            score = self.score(q, k.shape[2], layout, **signals)
            sums = self.normaliser.sums(*self.prepared(q, repeat_heads(k, q.shape[1]), **signals), layout, score)
            seen = layout.allowed(q.shape[2], k.shape[2], q.device, rows)
            weights = masked_softmax(scores - sums[:, :, None].to(q.dtype), seen)
        else:
            weights = self.normaliser.weigh(scores, q.shape[2], layout, rows, **signals)
        return self.opened(weights, rows, signals)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        score = self.score(q, k.shape[2], layout, **signals)
        left, right = self.prepared(q, repeat_heads(k, q.shape[1]), **signals)
        out = self.normaliser.attend(left, right, repeat_heads(v, q.shape[1]), layout, score, **signals)
        return self.opened(out.to(q.dtype), slice(0, q.shape[2]), signals)

    def opened(self, x: Tensor, rows: slice, signals: dict[str, Tensor]) -> Tensor:
        """Rows of A, or of A v, times γ."""
        return x * signals["gate"][:, :, rows, None].to(x.dtype) if self.gated else x

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        self.scorer.check(q, k, v, replace(layout, bias=None), {name: signals[name] for name in self.scorer.signals})
        self.normaliser.check(q)
        self.bias.check(q, k, layout)

    def products(self, shape: Shape) -> tuple[int, int]:
        return self.scorer.products(shape)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        each, before = self.products(shape)
        products = self.normaliser.products(shape.n, shape.keys, layout.causal, each, shape.values) + before
        return Cost(
            2 * shape.batch * shape.heads * products, shape.io_bytes, shape.cache_bytes + self.signal_bytes(shape)
        )

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        made = [
            (1, "additive", "alibi", "softmax(sinks=True)", {}),
            (2, "distance", "table(grid=(19, 31))", "laplace", {}),
            (2, "network(hidden=3)", "t5(buckets=8, max_distance=40)", "relu(power=1.5)", {}),
            (2, "dot", "table(grid=23)", "signed", {"softcap": 1.5}),
            (2, "phase", "none", "sigmoid", {"gate": "heads"}),
            (2, "dot(scale=0.3)", "none", "queries", {}),
            (2, "dot", "t5(buckets=8, max_distance=40)", "queries", {}),
            (2, "distance", "table(grid=(7, 9, 11))", "affine", {}),
            (2, "dot", "forget", "affine", {}),
            (2, "bilinear", "alibi", "sigmoid", {}),
            (2, "trilinear", "none", "sigmoid", {}),
        ]
        found = []
        for heads, score, bias, normaliser, after in made:
            mechanism = cls(score, bias, normaliser, heads, Example.head_dim, **after)
            for name, parameter in mechanism.named_parameters():
                if name.endswith(("table", "sink")):
                    torch.nn.init.normal_(parameter, std=0.5)
            found.append(Example(f"{score}, {bias}, {normaliser}", mechanism, heads, 1 + len(found) % heads))
        return found
