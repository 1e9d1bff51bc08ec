"""How long attention takes with its cache while a text is decoded: heads of different lengths beside the full cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.policy import Policy, View
from regard.hosts import caches
from regard.hosts.compress import compress
from regard.policies import Full

LAYERS, HEADS, KV_HEADS, HEAD_DIM, FULL = 4, 9, 3, 64, 4096
LENGTHS = (126, 512, FULL)
PLACES = 9


@dataclass(frozen=True, kw_only=True)
class Shares(Policy):
    """Keeps so many of the newest tokens in each kv head, once.

    Args:
        lengths: of the heads.
    """

    lengths: tuple[int, ...] = LENGTHS

    def due(self, over: float, decoding: bool) -> bool:
        return over > 0 and not decoding

    def scores(self, view: View) -> Tensor:
        return view.positions.float()

    def allot(self, views: Sequence[View], scores: Sequence[Tensor], budget: int) -> Sequence[int]:
        return self.lengths


def attention_alone() -> Any:
    """A model that is little else than attention, with SmolLM2's heads."""
    torch.manual_seed(0)
    about: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    sizes: dict[str, Any] = {"vocab_size": 16, "hidden_size": 36, "intermediate_size": 36, "head_dim": HEAD_DIM}
    return LlamaForCausalLM(LlamaConfig(**about, **sizes, max_position_embeddings=2 * FULL)).eval()


def filled(model: Any, n: int) -> DynamicCache:
    """A cache of so many random tokens."""
    cache, draw = DynamicCache(config=model.config), Generator().manual_seed(1)
    for layer in range(LAYERS):
        keys, values = (torch.randn(1, KV_HEADS, n, HEAD_DIM, generator=draw) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


@contextmanager
def clocked(model: Any) -> Iterator[list[float]]:
    """Seconds of CPU of every call of an attention module, from its input to its output."""
    begun, spent = [0.0], []
    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.self_attn.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.process_time())))
        hooks.append(layer.self_attn.register_forward_hook(lambda *_: spent.append(time.process_time() - begun[0])))
    yield spent
    for hook in hooks:
        hook.remove()


@measured()
def decoding() -> dict[str, float]:
    """The time of attention with its cache in a step over the full cache's, interleaved: the median of places.

    Caches that are made anew lie elsewhere in memory, which alone moves the ratio between 0.43 and 0.52.
    """
    ratios = [by_place() for _ in range(PLACES)]
    found = {}
    for name in ("ragged", "full"):
        low, middle, high = statistics.quantiles([ratio[name] for ratio in ratios], n=4, method="inclusive")
        found |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return found


def by_place() -> dict[str, float]:
    """The medians of the ratios of 30 steps, of caches that are made anew."""
    policies = {"dense": None, "ragged": Shares(), "full": Full()}
    models = {name: attention_alone() for name in policies}
    held, found = {name: filled(models[name], FULL) for name in policies}, {name: [] for name in policies}
    one, two = torch.tensor([[5]]), torch.tensor([[5, 6]])
    with torch.no_grad():
        for name, policy in policies.items():
            if policy is not None:
                compress(models[name], policy, sum(LENGTHS) // KV_HEADS).install()
            models[name](input_ids=two, **caches.given(models[name], held[name]))
        for _ in range(36):
            for name, model in models.items():
                with clocked(model) as spent:
                    model(input_ids=one, **caches.given(model, held[name]))
                found[name].append(sum(spent))
    return {
        name: statistics.median(a / b for a, b in zip(found[name][6:], found["dense"][6:], strict=True))
        for name in ("ragged", "full")
    }


def half_the_time(found: Figures) -> Finding:
    """At most half with heads of 126, 512 and 4,096 tokens, at most 5% more where nothing is forgotten."""
    ragged, full = found.one("ragged"), found.one("full")
    lengths = ", ".join(str(length) for length in LENGTHS)
    quartiles = f"{found.one('ragged_low'):.2f} to {found.one('ragged_high'):.2f}"
    figure = f"heads of {lengths} tokens take {ragged:.2f} ({quartiles}) of the full cache's time, with room for all"
    figure += f" {full:.2f}"
    return Finding.of(figure, ragged <= 0.5, full <= 1.05)
