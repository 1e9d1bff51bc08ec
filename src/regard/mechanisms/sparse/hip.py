"""Hierarchically pruned attention: the keys that a walk down a tree of chunks ends at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example
from regard.mechanisms.sparse.routed import Routed
from regard.routers.tree import Halves


@published(
    "hip",
    family="sparse",
    row=251,
    title="A Training-free Sub-quadratic Cost Transformer Model Serving Framework With Hierarchically Pruned Attention",
    arxiv="2406.09827",
    year=2024,
    aliases=("hip_attention", "hierarchically_pruned"),
    missing="masks that are kept for some steps of decoding, stages of several block sizes, and dense layers: a swap "
    "names the layers that it is in",
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

    See `regard.routers.tree.Halves` for the walk, which judges a chunk by its first key alone.

    Args:
        block: keys in a block. keep: blocks that the walk ends with. near: nearest blocks. size: queries that walk
            together, by the most that any of them scores; the authors' 32 loses more than one, and leaks.

    Raises:
        ValueError: what `Halves` refuses.

    Paper: Lee et al., arXiv 2406.09827: 512 keys in blocks of 2, 32 queries together, 128 nearest keys.
    """

    def __init__(self, block: int = 2, keep: int = 256, near: int = 64, size: int = 1) -> None:
        super().__init__(Halves(block, keep, near, size))
        self.traits = replace(self.traits, time="loglinear")

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("queries alone", cls(2, 5, 2), heads=4, kv_heads=2),
            Example("rows of 8", cls(4, 7, 1, 8), heads=3, kv_heads=3),
        ]
