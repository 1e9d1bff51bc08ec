"""What the first token is for: a sink that keeps a change of one token from spreading over all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.edit import Edit
from regard.edits.tilt import KnockOut
from regard.edits.trace import Trace
from regard.hosts.attach import attach


@published(
    "first_token",
    family="theory",
    kind="study",
    row=316,
    title="Why do LLMs attend to the first token?",
    arxiv="2504.02732",
    year=2025,
    aliases=("over_mixing",),
    fidelity="hand values",
    claim=(
        Claim(
            "where later tokens cannot attend to the first, a changed token spreads twice as far in late layers",
            cells="first_token.spread",
            holds="first_token.spreads_twice",
        ),
        Claim(
            "more than 30% of the heads of SmolLM2 give the first token more than 0.3 of their attention",
            cells="first_token.sinks",
            holds="first_token.are_sinks",
        ),
        Claim(
            "the longer the texts a model is trained on, the more of its heads are sinks",
            cells="beginnings.lengths",
            holds="beginnings.rise",
        ),
        Claim(
            "without a mark at the beginning of texts the first token is a sink; where all texts had it, it is missed",
            cells="beginnings.ways",
            holds="beginnings.depend_on_the_mark",
        ),
    ),
)
def spread_of_change(model: Any, ids: Tensor, place: int, token: int, edits: Sequence[Edit] = ()) -> list[float]:
    """How much a changed token moves the hidden states of those behind it, layer by layer.

        spread_l = mean_{i > place} |h'_li − h_li| / |h_li|

    Args:
        model: a Transformers model. ids: ``(n,)``. place: of the token that is changed. token: what it becomes.
        edits: that hold in both passes, such as `hide`.

    Paper: Barbero et al., arXiv 2504.02732.
    """
    other = ids.clone()
    other[place] = token
    states = []
    for each in (ids, other):
        trace = Trace("resid")
        with torch.no_grad(), attach(model, edits=[*edits, trace]):
            model(each[None])
        states.append([trace.get("resid", layer)[0, place + 1 :] for layer in sorted({k for _, k in trace.kept})])
    return [((b - a).norm(dim=-1) / a.norm(dim=-1)).mean().item() for a, b in zip(*states, strict=True)]


def hide(key: int, first: int = 8) -> KnockOut:
    """Takes attention to one key from all queries behind the ``first``, in all layers.

    Hidden from all queries, or left out, a sink only moves to the next token; hidden once it is there, it is missed.
    """
    return KnockOut([(key, key + 1)], rows=slice(first, None))
