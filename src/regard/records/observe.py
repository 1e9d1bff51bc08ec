"""The same probes on mechanisms of ours, whatever they are: linear, sparse or latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.tile import Probe, Tokens
from regard.hosts.lm_session import LMSession
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.session import Choice
from regard.networks import LM


@torch.no_grad()
def observe(
    mechanism: Mechanism,
    q: Tensor,
    k: Tensor,
    layout: Layout = Layout(),
    probes: Sequence[Probe] = (),
    *,
    ids: Tensor | None = None,
    layer: int = 0,
    **signals: Tensor,
) -> dict[str, object]:
    """Feeds ``probes`` the rows of A, block by block, as the mechanism's ``rows`` gives them; returns their results.

    Args:
        mechanism: what defines A. q: ``(batch, heads, n, d)``. k: ``(batch, kv_heads, m, d)``. layout: who sees whom.
        ids: ``(batch, m)`` token ids of the keys, for the probes that compare tokens.
        layer: under which index the results stand. signals: the mechanism's own inputs.

    Raises:
        ValueError, TypeError: inputs that do not fit the mechanism, named.
    """
    mechanism.check(q, k, None, layout, signals)
    wanted = (q.shape[0], k.shape[2])
    if ids is not None and tuple(ids.shape) != wanted:
        raise wrong("ids", f"shape {tuple(ids.shape)}", f"(batch, m) = {wanted}")
    source, tokens = ImplicitAttention(mechanism, q, k, layout, signals), None if ids is None else Tokens(ids)
    for rows in source.blocks():
        tile = source.tile(layer, rows, source.weights(rows), tokens)
        for probe in probes:
            probe.update(tile)
    return {probe.name: probe.result() for probe in probes}


@torch.no_grad()
def observe_model(
    model: LM, ids: Tensor, probes: Sequence[Probe], keys: Tensor | None = None
) -> tuple[Tensor, dict[str, object]]:
    """Runs a language model of ours and feeds ``probes`` the rows of A of every layer, whatever its mechanism.

    Args:
        model: of any mechanisms. ids: ``(b, n)``. probes: what is fed; each keeps its layers apart.
        key_mask: ``(b, n)`` bool, False = padding.

    Returns:
        The logits ``(b, n, vocabulary)`` and the probes' results by name.
    """

    session = LMSession(model, probes, Choice())
    try:
        session.install()
        logits = model(ids, keys)
    finally:
        session.remove()
    return logits, session.results()
