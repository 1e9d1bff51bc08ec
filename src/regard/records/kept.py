"""What a cache policy keeps of a record's text, token by token, in every kv head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.policy import Policy
from regard.hosts.attention_interface import host
from regard.hosts.compress import compress
from regard.networks import LM
from regard.records.format import Record


@torch.no_grad()
def mark_kept(record: Record, model: Any, policy: str | Policy, budget: int | float | str) -> Record:
    """The record with what ``policy`` leaves in the model's cache once the prompt is read, and what that is worth.

        kept_mass = Σ_{j kept} c_j r̄_j / Σ_j c_j r̄_j

    r̄_j is the mean weight that key j receives from the c_j queries that may see it, so that this is the share of a
    head's attention in this text that goes to what is kept; the model of the record itself forgets nothing.

    Args:
        record: of one text. model: whose it is. policy, budget: as for `regard.compress`.

    Raises:
        ValueError: a record of two texts, or a model of ours; LookupError, TypeError: as `regard.compress`.
    """
    if isinstance(model, LM) or "source" in record.tokens:
        wanted = "a decoder of Transformers, which has a cache of keys and values"
        raise wrong("policy", f"{policy} on {record.header['model']['architecture']}", wanted)
    model, prompt = host(model), record.header["prompt_tokens"]
    with compress(model, policy, budget) as compression:
        model(input_ids=torch.tensor([record.tokens["ids"][:prompt]], device=model.device), use_cache=True)
        store = compression.store
    arrays = dict(record.arrays)
    for layer in record.layers:
        at = getattr(model.get_submodule(layer["name"].partition("#")[0]), "layer_idx", None)
        if at not in store.layers:
            continue
        kept = torch.zeros(layer["kv_heads"], record.n, dtype=torch.uint8)
        for head, positions in enumerate(store.kept(at)):
            kept[head, positions.cpu()] = 1
        kept[:, prompt:] = 1
        arrays[f"{layer['index']}/kept"] = kept
        arrays[f"{layer['index']}/kept_mass"] = mass_on(kept, arrays[f"{layer['index']}/received"], layer)
    told = {"policy": str(policy), "budget": str(budget), "bytes": store.bytes}
    header = record.header | {"analyses": record.header.get("analyses", {}) | {"kept": told}}
    return replace(record, header=header, arrays=arrays)


def mass_on(kept: Tensor, received: Tensor, layer: Mapping[str, Any]) -> Tensor:
    """``(heads,)``: the share of each head's attention that goes to the keys ``kept (kv_heads, n)``."""
    heads, n = received.shape
    seen = torch.arange(n, 0, -1) if layer["causal"] else torch.full((n,), n)
    mass = received.double().nan_to_num(0) * seen.clamp(max=layer["window"] or n)
    every = kept.repeat_interleave(heads // len(kept), 0)
    return ((mass * every).sum(1) / mass.sum(1)).float()
