"""Readers on SmolLM2: what choosing pages or reusing a choice costs while everything is kept."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import smollm2
from regard.compare.cache_report import Prompt, continuations, needles
from regard.compare.cache_report import measured as kept_of
from regard.core.policy import Policy
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.hosts.compress import compress
from regard.hosts.reuse import reusing
from regard.policies import Delta, Quest

LENGTH, PROMPTS, SHARE, FULL = 1024, 10, 0.25, 15
"""Tokens, prompts, the share of them that is read, and HyLRA's full layers of 30."""


@measured(length=[2 * LENGTH])
def long_needle(length: int) -> dict[str, float]:
    """The same by pages alone, of longer texts: of the pages that are read fewer are those at the end, always read."""
    model, tokenizer = smollm2()
    ways: dict[str, Policy] = {"quest": Quest(), "delta": Delta()}
    prompts, rows = needles(tokenizer, length, PROMPTS, seed=3), {}
    names = {str(policy): name for name, policy in ways.items()} | {"full": "full"}
    for row in kept_of(model, prompts, [(policy, SHARE) for policy in ways.values()], known=[True]):
        rows.setdefault(names[row.policy], []).append(row)
    found = {f"{name} right": mean([row.right for row in some]) for name, some in rows.items()}
    return found | {f"{name} mass": mean([mass(model, way, p) for p in prompts[::3]]) for name, way in ways.items()}


@measured()
def needle() -> dict[str, float]:
    """Digits found, and the mass of what is read, with a quarter of 1,024 tokens read in each step."""
    model, tokenizer = smollm2()
    profiled = [torch.cat([p.context, p.question]) for p in continuations(tokenizer, 512, 4, seed=5)]
    hylra = reusing(model, profiled, round(512 * SHARE), FULL)
    ways: dict[str, Policy] = {"quest": Quest(), "delta": Delta(), "hylra": hylra}
    prompts, rows = needles(tokenizer, LENGTH, PROMPTS, seed=3), {}
    names = {str(policy): name for name, policy in ways.items()} | {"full": "full"}
    for row in kept_of(model, prompts, [(policy, SHARE) for policy in ways.values()], known=[True]):
        rows.setdefault(names[row.policy], []).append(row)
    found = {f"{name} right": mean([row.right for row in some]) for name, some in rows.items()}
    found |= {f"{name} nats": mean([row.nats for row in some]) for name, some in rows.items()}
    found |= {f"{name} mass": mean([mass(model, way, p) for p in prompts[::3]]) for name, way in ways.items()}
    return found | {"hylra full": float(len(hylra.full)), "layers": float(model.config.num_hidden_layers)}


def mean(values: list[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)


@torch.no_grad()
def mass(model: Any, policy: Policy, prompt: Prompt) -> float:
    """The share of attention, over the layers that read less, on what the question's last token reads."""
    cache: Any = DynamicCache(config=model.config)
    ids = torch.cat([prompt.context, prompt.question])[None]
    trace = Trace("q")
    with compress(model, policy, SHARE) as session:
        model(input_ids=ids[:, :-1], past_key_values=cache, logits_to_keep=1)
        with attach(model, edits=[trace]):
            model(input_ids=ids[:, -1:], past_key_values=cache)
    shares = []
    for rank, places in session.read.items():
        layer = cache.layers[rank]
        for view, at in zip(layer.views(0, trace.get("q", rank)[0], len(cache.layers)), places[0], strict=True):
            shares.append(view.weights(slice(-1, None))[..., at].sum(-1).mean().item())
    return mean(shares)


def keeps_recall(found: Figures) -> Finding:
    """Digits to a point of the full cache's, no fewer than Quest's, and 90% of the attention on what is read."""
    full, mine, quest = (found.one(f"{name} right") for name in ("full", "delta", "quest"))
    held = found.one("delta mass")
    figure = f"{mine:.0%} of digits, full {full:.0%}, a choice in every layer {quest:.0%}"
    return Finding.of(f"{figure}; {held:.0%} of the attention read", mine >= full - 0.01, mine >= quest, held >= 0.9)


def reuse_keeps_recall(found: Figures) -> Finding:
    """Half of the layers reuse, and digits are to a point of the full cache's."""
    full, mine = (found.one(f"{name} right") for name in ("full", "hylra"))
    layers, whole = found.one("layers"), found.one("hylra full")
    reuse = f"{layers - whole:.0f} of {layers:.0f} layers reusing"
    figure = f"{mine:.0%} of digits with {reuse}, full {full:.0%}; {found.one('hylra mass'):.0%} of the attention read"
    return Finding.of(figure, whole <= layers / 2, mine >= full - 0.01)
