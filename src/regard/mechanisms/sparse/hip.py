"""Hierarchically pruned attention: the keys that a walk down a tree of chunks ends at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example
from regard.kernels import chosen
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.routed import Known, Routed
from regard.routers.stages import Lists, Stages
from regard.routers.tree import Halves


@dataclass(frozen=True)
class Walked(Known):
    """`Known`, and what walks of the last steps of decoding found.

    Args:
        lists: of each stage but the first the chunks that it begins with, and last the blocks; empty after a prompt.
        steps: since the prompt.
    """

    lists: Lists = ()
    steps: int = 0


@published(
    "hip",
    family="sparse",
    row=251,
    title="A Training-free Sub-quadratic Cost Transformer Model Serving Framework With Hierarchically Pruned Attention",
    arxiv="2406.09827",
    year=2024,
    aliases=("hip_attention", "hierarchically_pruned"),
    claim=(
        Claim(
            text="a walk looks at no more than 2 k (log₂(n / k) + 1) keys a row",
            cells="routed.walks",
            holds="routed.looks_at_few",
        ),
        Claim(
            text="untrained, with 256 keys of the walk and the nearest, a language model keeps 95% of its recall",
            cells="routed.pruned_recall",
            holds="routed.pruning_keeps_recall",
        ),
    ),
)
class HierarchicallyPruned(Routed):
    """Each query attends to the blocks that a walk through halves of chunks ends at, to the first and to the nearest.

    See `regard.routers.tree.Halves` for the walk, which judges a chunk by its first key alone; with ``stages``,
    `regard.routers.stages.Stages`, as of version 1.2 of the authors' code. While a text goes on token by token, what
    stage i found serves ``refresh[i]`` steps, and what it says then is of an earlier query.

    Args:
        block: keys in a block. keep: blocks that the walk ends with. near: nearest blocks. size: queries that walk
            together, by the most that any of them scores; the authors' 32 loses more than one, and leaks. sinks: first
            blocks that are always seen. stages: chunks of so many keys, and how many keys are kept of them, before the
            last stage, whose chunks are the blocks. refresh: of each stage, in steps; (1, …) where it is left out.
            bound: judge halves by what a key between the minima and maxima of theirs could score, which is no part of
            the paper. dense: layers, by their number, that attend to all keys. layer_index: of this layer.

    Raises:
        ValueError: what `Halves` and `Stages` refuse, bounds in stages, a refresh that is not of all stages.

    Paper: Lee et al., arXiv 2406.09827: 512 keys in blocks of 2, 32 queries together, 128 nearest keys. Version 1.2:
    ``block=8, keep=256, near=128, size=64, sinks=32, stages=((256, 32768), (32, 8192)), refresh=(32, 16, 8),
    dense=(0, 1, 2, 3, 31)``.
    """

    def __init__(
        self,
        block: int = 2,
        keep: int = 256,
        near: int = 64,
        size: int = 1,
        sinks: int = 1,
        stages: Sequence[tuple[int, int]] = (),
        refresh: Sequence[int] = (),
        bound: bool = False,
        dense: Sequence[int] = (),
        layer_index: int = 0,
    ) -> None:
        if stages and bound:
            raise wrong("bound", "bounds in stages", "walks of one stage: stages judge by single keys")
        if refresh and (len(refresh) != len(stages) + 1 or min(refresh) < 1):
            raise wrong("refresh", f"{tuple(refresh)}", f"one or more steps for each of the {len(stages) + 1} stages")
        made = (
            Stages(stages, block, keep, near, size, sinks) if stages else Halves(block, keep, near, size, sinks, bound)
        )
        super().__init__(made)
        self.refresh = tuple(refresh)
        self.full = Softmax() if layer_index in dense else None
        self.traits = replace(self.traits, time="quadratic" if stages else "loglinear")
        if self.full is not None:
            self.traits = self.full.traits
        elif any(steps > 1 for steps in self.refresh):
            self.traits = replace(self.traits, resumable=False)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        if self.full is not None:
            self.check(q, k, None, layout, signals)
            return self.full.weights(q, k, layout)[:, :, rows]
        return super().rows(q, k, layout, rows, **signals)

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        of = super() if self.full is None else self.full
        return of.support(n, m, layout, device, rows)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        if self.full is not None:
            self.check(q, k, v, layout, signals)
            return self.full(q, k, v, layout)
        return super().forward(q, k, v, layout, **signals)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """Nothing seen, nothing found."""
        if self.full is not None:
            return self.full.start(batch, device=device, dtype=dtype)
        known = super().start(batch, device=device, dtype=dtype)
        return Walked(known.seen, known.cache, known.summary)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Any]:
        """Walks anew, or from the stage on whose steps are over; several tokens at once are a prompt."""
        self.check(q, k, v, Layout(causal=True), signals)
        if self.full is not None:
            return self.full.extend(q, k, v, state, key_mask)
        grown, here = self.grown(k, v, state, key_mask)
        keys, values, summary = self.all_of(grown)
        rows = self.router.rows(here, keys.shape[2], True)
        alone = q.shape[2] == 1 and bool(self.refresh)
        lists: Lists = self.lists_at(q, keys, summary, rows, state) if alone else ()
        router = self.router
        assert isinstance(router, Halves)
        choice = router.joined(lists[-1], rows) if lists else router(q, keys, rows, summary)
        steps = state.steps + 1 if alone else 0
        walked = Walked(grown.seen, grown.cache, grown.summary, lists, steps)
        return chosen.attend(q, keys, values, choice).out, walked

    def lists_at(self, q: Tensor, keys: Tensor, summary: Any, rows: Any, state: Walked) -> Lists:
        """What a step of decoding goes by: of stages whose steps are over anew, of others as it was."""
        due = [place for place, steps in enumerate(self.refresh) if state.steps % steps == 0]
        if state.lists and not due:
            return state.lists
        router, summary = self.router, self.router.summary(keys) if summary is None else summary
        if isinstance(router, Stages):
            return router.lists(q, summary, rows, state.lists, due[0] if state.lists else 0)
        assert isinstance(router, Halves)
        return (router.found(q, summary, rows),)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        return super().cost(shape, layout) if self.full is None else self.full.cost(shape, layout)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("queries alone", cls(2, 5, 2), heads=4, kv_heads=2),
            Example("rows of 8", cls(4, 7, 1, 8), heads=3, kv_heads=3),
            Example("by bounds", cls(3, 4, 1, sinks=2, bound=True), heads=4, kv_heads=2),
            Example("three stages", cls(2, 5, 1, sinks=2, stages=((16, 48), (4, 20))), heads=4, kv_heads=2),
            Example(
                "two stages, kept for some steps", cls(3, 4, 2, stages=((12, 36),), refresh=(4, 2)), heads=3, kv_heads=3
            ),
            Example("a dense layer", cls(2, 5, 2, dense=(0, 3), layer_index=3), heads=4, kv_heads=2),
        ]
