"""Superlinear attention: a search over anchors at growing distances, then attention to the spans about the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layer import LayerSpec
from regard.core.layout import Layout
from regard.core.mechanism import Example, Signal, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.core.reduction import Partial
from regard.kernels import band, chosen
from regard.kernels import packing as alone
from regard.kernels.tiled import split
from regard.mechanisms.cached import Cached
from regard.patterns.choice import Choice, Rows, best

TILE = 1024
"""Queries whose spans are laid out at a time."""


@published(
    "superlinear",
    family="sparse",
    row=126,
    title="Superlinear Multi-Step Attention",
    arxiv="2601.18401",
    year=2026,
    aliases=("span_attention", "superlinear_attention"),
    fidelity="authors' code",
    claim=(
        Claim(
            "every past position is in some candidate span, with spans of 2√i keys behind their anchors",
            cells="superlinear.covered",
            holds="superlinear.leaves_none_out",
        ),
        Claim(
            "a token costs as n^0.5",
            cells="superlinear.per_token",
            holds="superlinear.grows_as_root",
        ),
        Claim(
            "with three steps a token costs as n^(1/3), and no past position is left out",
            cells="superlinear.three_steps",
            holds="superlinear.grows_as_third_root",
        ),
        Claim(
            "trained on 128 tokens, it finds a needle in 512, where windows do not",
            cells="superlinear.needle",
            holds="superlinear.is_found",
        ),
        Claim(
            "four layers that are trained on up to 1,024 tokens find at least 95% of the needles in 4,096",
            cells="superlinear.far_needle",
            holds="superlinear.is_found_at_4k",
        ),
    ),
)
class Superlinear(Cached):
    """N steps: searches score anchors ever nearer, and each of the best gives softmax attention in its span.

        a_s = i − (⌊s^{1/p}⌋ − 1),  s > s₀;   r_s = q'_i · k_{a_s};   T = the ``spans`` anchors of the largest r
        o_i = Σ_{a ∈ T} softmax over T of r_a · softmax over S_a ∪ W of (q_i · k_j / √d) v_j
        S_a = {a − ⌈b (i + 1)^σ⌉ … min(a + ⌈f (i + 1)^σ⌉, i − w)},   W = {i − w + 1 … i},   w = ⌊(s₀ + 1)^{1/p}⌋ − 1

    q' is the signal ``search``, p ``search_power``, σ ``span_power``, b ``behind``, f ``ahead``, s₀ ``window_index``.
    A is ``weights``: every span's softmax has the window in it, and the mixture's rows sum to one; where there is no
    anchor, the window alone is seen. Gradients reach q' and the anchors' keys by the mixture, whose scores are not
    divided by √d, and not through the choice. Of equal scores the earlier anchor is taken.

    That is N = 2 ``steps``, all that the author's code has. Of more the paper tells that N searches and attentions cost
    n^(1 + 1/N); here step j of those between looks into the span of b (i + 1)^(1 − j p) keys behind each anchor that
    is kept, at one key in (i + 1)^(1 − (j + 1) p); an anchor's r is the sum of its own and of those that led to it.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, ``search (b, h, n, d)`` -> ``(b, h, n, e)``;
    causal.
    Cost: ``2 n m^p (1 + (N − 2) spans b) d + 4 n (spans ((b + f) m^σ + 1) + w) max(d, e)`` FLOPs a head. State: all
    keys and values.

    Args:
        spans: anchors that are kept. behind, ahead: of a span, in (i + 1)^σ keys before and after its anchor; with
            ``behind`` from N on, some span holds every key. window_index: s₀, 0 for no window. search_power: p, of how
            many anchors there are. span_power: σ. Both are 1/N by default. steps: N.

    Raises:
        ValueError: spans below one, ``behind`` not above zero, a negative ``ahead`` or ``window_index``, powers that
            are not between 0 and 1, or fewer than two steps.

    Keys are not turned by positions: an anchor is found by what it holds. For that its state has to tell of the tokens
    before it, which recurrent layers see to. Defaults are those of the author's functions; his README takes
    ``behind=3, ahead=1, window_index=3``, and about 0.55 for the search.

    Paper: Huang, arXiv 2601.18401.
    """

    signals = MappingProxyType({"search": Signal("the query that looks for anchors", side="query", dim="key")})
    layer = LayerSpec(rotary=False)
    traits = Traits(
        bidirectional=False, cross=False, rows="one", sign="nonnegative", time="subquadratic", flops="at most"
    )

    def __init__(
        self,
        spans: int = 3,
        behind: float = 2.0,
        ahead: float = 0.0,
        window_index: int = 0,
        search_power: float | None = None,
        span_power: float | None = None,
        steps: int = 2,
    ) -> None:
        super().__init__()
        if steps < 2:
            raise wrong("steps", str(steps), "at least 2")
        search_power = 1 / steps if search_power is None else search_power
        span_power = 1 / steps if span_power is None else span_power
        if spans < 1:
            raise wrong("spans", str(spans), "at least 1")
        if not behind > 0:
            raise wrong("behind", str(behind), "above 0")
        if not ahead >= 0:
            raise wrong("ahead", str(ahead), "0 or more")
        if window_index < 0:
            raise wrong("window_index", str(window_index), "0 or more")
        for name, power in (("search_power", search_power), ("span_power", span_power)):
            if not 0 < power < 1:
                raise wrong(name, str(power), "between 0 and 1")
        self.spans, self.behind, self.ahead, self.window_index = spans, behind, ahead, window_index
        self.search_power, self.span_power, self.steps = search_power, span_power, steps
        self.window = int((window_index + 1) ** (1 / search_power)) - 1

    def distances(self, m: int, device: torch.device | str = "cpu") -> Tensor:
        """How far before a query its anchors are, the farthest first, those of a query at key m − 1."""
        most = int(m**self.search_power) + 2
        steps = torch.arange(1, most + 1, dtype=torch.float64, device=device)[self.window_index :]
        found = (steps ** (1 / self.search_power)).floor().long() - 1
        return found[found < m].flip(0)

    def reach(self, tokens: Tensor, factor: float, power: float | None = None) -> Tensor:
        """⌈factor · tokens^σ⌉, or of another power, in keys."""
        return (factor * tokens.clamp(min=0).double() ** (self.span_power if power is None else power)).ceil().long()

    def refinement(self, tokens: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """How many keys behind an anchor a step between looks, and how far apart, of queries behind so many tokens."""
        wide, apart = (max(1 - place * self.search_power, 0) for place in (step, step + 1))
        return self.reach(tokens, self.behind, wide), self.reach(tokens, 1.0, apart).clamp(min=1)

    @torch.no_grad()
    def followed(self, score_at: Callable[[Tensor], Tensor], anchors: Tensor, here: Tensor) -> Tensor:
        """``(b, h, n, spans, N − 1)`` int64: the anchors of all searches that lead to those of the last, −1 for none.

        ``score_at`` gives the scores of keys ``(b, h, n, x)``, ``anchors (b, h, n, spans)`` are those of the first.
        """
        path, total = anchors[..., None], None
        for step in range(1, self.steps - 1):
            total = score_at(anchors.clamp(min=0)) if total is None else total
            far, apart = (x[:, None, None] for x in self.refinement(here + 1, step))
            count = int((far // apart).max()) + 1 if len(here) else 1
            moved = apart * torch.arange(count, device=here.device)
            found = (path[..., -1:] - moved).masked_fill((moved > far) | (path[..., -1:] < 0), -1)
            scores = total[..., None] + score_at(found.clamp(min=0).flatten(3)).unflatten(3, (self.spans, count))
            scores = scores.masked_fill(found < 0, -torch.inf).flatten(3)
            chosen = best(scores, self.spans)
            index, none = chosen.clamp(min=0), chosen < 0
            total, last = scores.gather(3, index), found.flatten(3).gather(3, index)
            before = path.gather(3, (index // count)[..., None].expand(*index.shape, path.shape[4]))
            path = torch.cat([before, last[..., None]], 4).masked_fill(none[..., None], -1)
        return path

    def bounds(self, anchors: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last key of each span of ``anchors (…, n, spans)``; of none, −1, the last is −1.

        ``here (n,)`` is where the queries stand.
        """
        count, last = (here + 1)[:, None], (here - self.window)[:, None]
        first = (anchors - self.reach(count, self.behind)).clamp(min=0)
        return first, torch.minimum(anchors + self.reach(count, self.ahead), last).masked_fill(anchors < 0, -1)

    @torch.no_grad()
    def search(self, asked: Tensor, k: Tensor, here: Tensor) -> Tensor:
        """``(b, h, n, spans)`` int64: the anchors with the best scores, ascending, −1 behind; ``asked`` is q'."""
        apart, wide = self.distances(k.shape[2], k.device), accumulate_dtype(k.dtype)
        if not len(apart):
            return torch.full((*asked.shape[:3], self.spans), -1, device=k.device)
        found = []
        for some in split(0, len(here), max(chosen.GATHERED // len(apart), 1)):
            place = here[some, None] - apart
            keys, queries = k[:, :, place.clamp(min=0)].to(wide), asked[:, :, some].to(wide)
            queries = queries.unflatten(1, (k.shape[1], -1))
            scores = torch.einsum("bgrnd,bgnsd->bgrns", queries, keys).flatten(1, 2)
            index = best(scores.masked_fill(place < 0, -torch.inf), self.spans)
            taken = place.expand(*scores.shape[:2], -1, -1).gather(3, index.clamp(min=0))
            found.append(taken.masked_fill(index < 0, -1))
        return torch.cat(found, 2)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(True), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        both = torch.cat([q, signals["search"]], 3)

        def run(both: Tensor, k: Tensor, rows: slice) -> Tensor:
            own, asked = both.chunk(2, 3)
            return self.map(own, asked, k)[:, :, rows]

        return run(both, k, slice(None)) if layout.regular else alone.maps(run, both, k, layout)

    def map(self, q: Tensor, asked: Tensor, k: Tensor) -> Tensor:
        """A of the last queries of one document, from the scores of all pairs."""
        (n, m), k = (q.shape[2], k.shape[2]), repeat_heads(k, q.shape[1])
        if not m:
            return q.new_zeros(*q.shape[:3], 0)
        here, place = torch.arange(m - n, m, device=q.device), torch.arange(m, device=q.device)
        apart = here[:, None] - place
        found = (asked @ k.mT).masked_fill(~torch.isin(apart, self.distances(m, q.device)), -torch.inf)
        every = asked @ k.mT
        path = self.followed(lambda tokens: every.gather(3, tokens), best(found.detach(), self.spans), here)
        total = every.gather(3, path.clamp(min=0).flatten(3)).unflatten(3, path.shape[3:]).sum(4)
        anchors = path[..., -1]
        gates = shares(total, anchors >= 0)
        first, last = (x[..., None] for x in self.bounds(anchors, here))
        scores, near = q @ k.mT * q.shape[3] ** -0.5, (apart >= 0) & (apart < self.window)
        a = torch.zeros_like(scores)
        for s in range(self.spans):
            span = (place >= first[:, :, :, s]) & (place <= last[:, :, :, s])
            a = a + gates[..., s, None] * masked_softmax(scores, near | span)
        return a

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        return layout.among_tokens(n, m, device, rows)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(True), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        both = torch.cat([q, signals["search"]], 3)

        def run(both: Tensor, k: Tensor, v: Tensor) -> Tensor:
            own, asked = both.chunk(2, 3)
            return self.mixed(own, asked, k, v)

        return run(both, k, v) if layout.regular else alone.per_sequence(run, both, k, v, layout)

    def mixed(self, q: Tensor, asked: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output of the last queries of one document."""
        (n, m), wide = (q.shape[2], k.shape[2]), accumulate_dtype(q.dtype)
        if not (n and m):
            return q.new_zeros(*q.shape[:3], v.shape[3]) + sum(x[..., :0].sum() for x in (q, asked, k, v))
        here = torch.arange(m - n, m, device=q.device)
        path = self.paths(asked, k, here)
        anchors = path[..., -1]
        keys = chosen.gathered(k, path.clamp(min=0).flatten(3)).to(wide)
        scores = (asked.to(wide)[:, :, :, None] * keys).sum(4).unflatten(3, path.shape[3:])
        gates = shares(scores.sum(4), anchors >= 0)
        first, last = self.bounds(anchors, here)
        near = self.nearest(q, k, v) if self.window else None
        out = torch.zeros((), dtype=wide, device=q.device)
        for s in range(self.spans):
            part = self.within(q, k, v, here, first[..., s], last[..., s])
            out = out + gates[..., s, None] * (part if near is None else near + part).out
        return out.to(q.dtype)

    @torch.no_grad()
    def paths(self, asked: Tensor, k: Tensor, here: Tensor) -> Tensor:
        """`followed` from `search`, with the keys that are looked at gathered for some queries at a time."""
        anchors, wide = self.search(asked, k, here), accumulate_dtype(k.dtype)
        if self.steps == 2:
            return anchors[..., None]
        found = []
        for some in split(0, len(here), max(chosen.GATHERED // max(self.looks(k.shape[2]), 1), 1)):
            queries = asked[:, :, some].to(wide)

            def score_at(tokens: Tensor, queries: Tensor = queries) -> Tensor:
                return (queries[:, :, :, None] @ chosen.gathered(k, tokens).to(wide).mT)[:, :, :, 0]

            found.append(self.followed(score_at, anchors[:, :, some], here[some]))
        return torch.cat(found, 2)

    def looks(self, m: int) -> int:
        """At how many keys the last query looks in its steps between, of so many."""
        pairs = (self.refinement(torch.tensor([m]), step) for step in range(1, self.steps - 1))
        return sum(self.spans * (int(far // apart) + 1) for far, apart in pairs)

    def nearest(self, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        """Attention to the window of each query."""
        first = max(k.shape[2] - q.shape[2] - self.window + 1, 0)
        return band.attend_lse(q, k[:, :, first:], v[:, :, first:], self.window, True)

    def within(self, q: Tensor, k: Tensor, v: Tensor, here: Tensor, first: Tensor, last: Tensor) -> Partial:
        """Attention of each query to its keys from ``first (b, h, n)`` to ``last``."""
        parts = []
        for some, m, width in self.tiles(q.shape[2], k.shape[2]):
            keys = first[:, :, some, None] + torch.arange(width, device=q.device)
            index = keys.masked_fill(keys > last[:, :, some, None], -1)
            choice = Choice(index, Rows(here[None, some], m, 1))
            way = None if q.device.type == "cpu" else "mask" if choice.rows.n * m <= chosen.WHOLE else "keys"
            parts.append(chosen.attend(q[:, :, some], k[:, :, :m], v[:, :, :m], choice, way=way))
        if len(parts) == 1:
            return parts[0]
        return Partial(torch.cat([part.out for part in parts], 2), torch.cat([part.lse for part in parts], 2))

    def tiles(self, n: int, m: int) -> list[tuple[slice, int, int]]:
        """Some of the last ``n`` queries at a time, the keys that they see, and the most that are in a span of them."""
        found = []
        for some in split(0, n, TILE):
            seen = max(m - n + some.stop, 0)
            tokens = torch.tensor(seen)
            width = int(self.reach(tokens, self.behind)) + int(self.reach(tokens, self.ahead)) + 1
            found.append((some, seen, min(width, seen)))
        return found

    def cost(self, shape: Shape, layout: Layout = Layout(True)) -> Cost:
        (n, m), wide = (shape.n, shape.keys), max(shape.head_dim, shape.values)
        cells = sum(chosen.cells(some.stop - some.start, seen, 1, 1, width) for some, seen, width in self.tiles(n, m))
        first = max(m - n - self.window + 1, 0)
        near = band.cells(n, m - first, self.window, True, 0) if self.window else 0
        looked = len(self.distances(m)) + self.looks(m) + self.spans * (self.steps > 2)
        each = 2 * n * looked * shape.head_dim + 4 * (self.spans * cells + near) * wide
        return Cost(shape.batch * shape.heads * each, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("three spans", cls(), heads=3, kv_heads=3),
            Example("a window, spans of both ways, grouped", cls(2, 1.5, 0.5, 2), heads=4, kv_heads=2),
            Example("more anchors, shorter spans", cls(2, 3, 1, 1, 0.55, 0.45)),
            Example("three steps", cls(2, 3, window_index=1, steps=3), heads=4, kv_heads=2),
            Example("four steps", cls(3, 4, 1, steps=4)),
        ]


def shares(scores: Tensor, there: Tensor) -> Tensor:
    """Softmax of the scores of anchors ``(b, h, n, spans)``; all of it on the first where ``there`` is none."""
    gates, none = masked_softmax(scores, there), ~there.any(-1, keepdim=True)
    return torch.cat([gates[..., :1] + none.to(gates.dtype), gates[..., 1:]], 3)
