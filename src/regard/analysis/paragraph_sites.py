"""Where in a model a text that it knows by heart is: gradients of activations, and activations put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.base import Prompt
from regard.analysis.paragraph_memory import begin, continuation_loss
from regard.analysis.sweep import KINDS, Site, SiteEdit, SiteKind, read
from regard.core.errors import wrong
from regard.edits.trace import Trace
from regard.hosts.attach import attach


def activation_gradients(
    model: Any, prompt: Prompt, parts: Sequence[SiteKind] = KINDS, instead: Tensor | None = None
) -> dict[SiteKind, Tensor]:
    """How much the loss of a text's continuation hangs on each activation: ‖∂L/∂x‖ at every layer and position.

    By part ``(layers, n)``, of ``z`` ``(layers, heads, n)``, float64. The difference for a text and for the same with
    another continuation, ``instead``, is what the paper contrasts.

    Args:
        model: a Transformers model. parts: of `Site`. instead: ``(continuation,)`` tokens in the place of the text's.

    Raises:
        ValueError: no parts, or a prompt without a continuation.
    """
    kinds = list(dict.fromkeys(parts))
    if not kinds:
        raise wrong("parts", "none", f"some of {', '.join(KINDS)}")
    trace = Trace(*kinds)
    with torch.enable_grad(), attach(model, edits=[trace]):
        loss = continuation_loss(model, prompt, instead)
    layers = range(model.config.get_text_config().num_hidden_layers)
    kept = {(kind, layer): trace.get(kind, layer) for kind in kinds for layer in layers}
    slopes = dict(zip(kept, torch.autograd.grad(loss, list(kept.values())), strict=True))
    return {kind: torch.stack([slopes[kind, layer][0].double().norm(dim=-1) for layer in layers]) for kind in kinds}


@torch.no_grad()
def token_patching(
    model: Any, prompt: Prompt, slot: int, token: int, part: SiteKind = "resid", rows: int = 32
) -> Tensor:
    """``(layers, n)``: how much of a text comes back where one activation is that of the text itself.

        effect = (L(perturbed) − L(patched)) / (L(perturbed) − L(text)),   L of the text's own continuation

    In the perturbed run the token at ``slot`` of the prefix is another; the activation of each layer and position, one
    by one, is put back.

    Args:
        model: a Transformers model. slot: in the prefix. token: what stands there instead. part: ``resid``, ``attn`` or
            ``mlp``. rows: interventions in a batch.

    Raises:
        ValueError: a slot outside of the prefix, its own token, or heads, which `sweep` patches.
    """
    start = begin(prompt)
    if not 0 <= slot < start or int(prompt.ids[slot]) == token:
        raise wrong("slot", f"{slot} with token {token}", f"a slot of the prefix, 0 to {start - 1}, and another token")
    if part == "z":
        raise wrong("part", "'z'", "resid, attn or mlp")
    changed = replace(prompt, ids=prompt.ids.clone())
    changed.ids[slot] = token
    own = prompt.ids[start:]
    trace = Trace(part)
    with attach(model, edits=[trace]):
        whole = losses(model, prompt.ids[None], own)
    broken = losses(model, changed.ids[None], own)
    layers, n = model.config.get_text_config().num_hidden_layers, len(prompt.ids)
    sites = [Site(layer, part, None, at) for layer in range(layers) for at in range(n)]
    found = []
    for first in range(0, len(sites), rows):
        some = sites[first : first + rows]
        edit = SiteEdit([[site] for site in some], lambda row, site, x: read(trace, site))
        with attach(model, edits=[edit]):
            found.append(losses(model, changed.ids.expand(len(some), -1), own))
    return ((broken - torch.cat(found)) / (broken - whole)).view(layers, n)


def losses(model: Any, ids: Tensor, own: Tensor) -> Tensor:
    """``(b,)`` float64: the mean loss of a continuation ``own`` behind each text."""
    told = model(input_ids=ids.to(model.device), use_cache=False).logits[:, -len(own) - 1 : -1].double()
    every = own.to(told.device).expand(len(ids), -1)
    return cross_entropy(told.flatten(0, 1), every.flatten(), reduction="none").view_as(every).mean(1).cpu()
