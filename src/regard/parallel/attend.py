"""The verb: attention over tokens that ranks hold a part of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regard.core.errors import did_you_mean, wrong
from regard.parallel.base import Call, Sharded
from regard.parallel.gather import Gather
from regard.parallel.group import Distributed, Group
from regard.parallel.heads import Heads
from regard.parallel.plan import Plan
from regard.parallel.ring import Ring
from regard.parallel.ring_self_attention import RingSelfAttention
from regard.parallel.state import States
from regard.parallel.tree import Tree

HOW: Mapping[str, type[Sharded]] = {
    kernel.how: kernel for kernel in (Ring, Gather, Tree, Heads, States, RingSelfAttention)
}
"""The kernels by the word that chooses them."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shards: Plan,
    how: str | Sharded = "ring",
    *,
    causal: bool = False,
    queries: Plan | None = None,
    scale: float | None = None,
    group: Group | None = None,
    check: bool = True,
    **signals: Tensor,
) -> Tensor:
    """Attention of one process, over tokens that many hold: this rank's rows of ``A v``, differentiable.

        out = regard.parallel.attend(q, k, v, Plan.zigzag(n, world_size), causal=True)

    All ranks call it with the same arguments but their own parts of the tensors, and run its backward pass too.

    Shapes on rank r: ``q (b, h, n_r, d)``, ``k (b, g, m_r, d)``, ``v (b, g, m_r, e)`` -> ``(b, h, n_r, e)``, in the
    order in which the rank holds its tokens; packed documents by the plan's borders.

    Args:
        shards: who holds which keys, and, without ``queries``, which queries.
        how: "ring", "gather", "heads" (all tokens of some heads), "tree" (few queries, which all ranks hold), "state"
            (linear attention), "scores" (whole rows of scores); or a kernel, such as ``States("gla")``.
        causal: query i sees keys up to ``i + (m − n)``. queries: who holds which queries, where that is another plan.
        scale: of the scores, None for ``1 / sqrt(d)``. group: the ranks, None for all of `torch.distributed`.
        check: whether ranks tell each other first, in 16 bytes, that the call fits. signals: of a linear mechanism.

    Raises:
        ValueError, TypeError: what does not fit, on the rank where it does not. RuntimeError: on all others, within the
            group's limit; likewise where a rank fails or ends.
    """
    kernel = kernel_of(how)
    ranks = Distributed() if group is None else group
    call = Call(shards, shards if queries is None else queries, ranks, causal, scale, check)
    return kernel.attend(q, k, v, call, **signals)


def kernel_of(how: Any) -> Sharded:
    """The kernel that is meant.

    Raises:
        ValueError: there is none of this name.
    """
    if isinstance(how, Sharded):
        return how
    if how not in HOW:
        raise wrong("how", repr(how), f"one of {', '.join(HOW)}, or a kernel{did_you_mean(str(how), HOW)}")
    return HOW[how]()
