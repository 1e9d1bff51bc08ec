"""Mixture of block attention: each query attends to its own block and to those whose mean key it scores best."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example
from regard.mechanisms.sparse.routed import Routed
from regard.routers.blocks import Mean


@published(
    "moba",
    family="sparse",
    row=41,
    title="MoBA: Mixture of Block Attention for Long-Context LLMs",
    arxiv="2502.13189",
    year=2025,
    aliases=("mixture_of_block_attention",),
    fidelity="authors' code",
    claim=Claim(
        text="with blocks of 256 keys, of which three are taken, prefill takes at most 1/2.5 of dense attention's time "
        "at 8k tokens and 1/4 at 16k",
        cells="routed.prefill",
        holds="routed.faster_than_dense",
    ),
)
class MoBA(Routed):
    """Each query attends to its own block of keys and to the blocks whose mean key scores best for it.

        C_i = {own} ∪ the k − 1 earlier blocks with the largest q_i · mean(K_j)

    k is ``budget`` and counts the own block, as the authors' code does; their paper counts it apart. Gates are float32,
    not scaled. Trained with it from the start or for long: untrained models lose what they recall.

    Args:
        block: keys in a block. budget: k, blocks for each query.

    Raises:
        ValueError: a block or budget below one.

    Paper: Lu et al., arXiv 2502.13189; blocks of 512 to 4,096 keys, 3 to 12 of them.
    """

    def __init__(self, block: int = 512, budget: int = 3) -> None:
        super().__init__(Mean(block, budget, forced=("own",)))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("blocks of 4", cls(4, 3), heads=3, kv_heads=3),
            Example("blocks of 33, grouped", cls(33, 3), heads=4, kv_heads=2),
        ]
