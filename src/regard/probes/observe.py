"""The same probes on mechanisms of ours, whatever they are: linear, sparse or latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.tile import Probe, Tile, Tokens
from regard.hosts.call import BLOCK, LEAST_ROWS
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
    batch, heads, n, _ = q.shape
    m = k.shape[2]
    if ids is not None and tuple(ids.shape) != (batch, m):
        raise wrong("ids", f"shape {tuple(ids.shape)}", f"(batch, m) = {(batch, m)}")
    keys = torch.ones(batch, m, dtype=torch.bool, device=k.device) if layout.keys is None else layout.keys
    aligned = layout.causal or n <= m
    shift = m - n if aligned else 0
    tokens = None if ids is None else Tokens(ids)
    step = max(LEAST_ROWS, BLOCK // max(batch * heads * m, 1))
    for first in range(max(-shift, 0), n, step):
        part = slice(first, min(first + step, n))
        weights = mechanism.rows(q, k, layout, part, **signals)
        rows = torch.arange(part.start, part.stop, device=q.device) + shift
        tile = Tile(
            layer=layer,
            weights=weights.to(torch.promote_types(weights.dtype, torch.float32)),
            rows=rows,
            start=0,
            m=m,
            queries=keys[:, rows] if aligned else torch.ones(batch, len(rows), dtype=torch.bool, device=q.device),
            keys=keys,
            causal=layout.causal,
            visible=None if layout.plain else layout.allowed(n, m, q.device, part),
            tokens=tokens,
        )
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
        keys: ``(b, n)`` bool, False = padding.

    Returns:
        The logits ``(b, n, vocabulary)`` and the probes' results by name.
    """

    def look(index: int):
        def before(layer, arguments) -> None:
            x, layout = arguments
            q, k, _, signals = layer.inputs(x, layout)
            observe(layer.mechanism, q, k, layout, probes, ids=ids, layer=index, **signals)

        return before

    handles = [block.attention.register_forward_pre_hook(look(index)) for index, block in enumerate(model.layers)]
    try:
        logits = model(ids, keys)
    finally:
        for handle in handles:
            handle.remove()
    return logits, {probe.name: probe.result() for probe in probes}
