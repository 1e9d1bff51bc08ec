"""SinkLoRA from end to end: a small model tuned by groups of tokens, then decoded with a cache of heavy hitters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.source import VOCABULARY, characters, windows
from regard.hosts import caches
from regard.hosts.compress import Stored, compress
from regard.hosts.swap import swap
from regard.train.fit import Recipe, fit

LENGTH, SIZE, BUDGET, TEXTS = 256, 8, 48, 16
GROUPS = f"sinklora(heads=4, size={LENGTH // 4}, shifted=0.25, sinks=4)"
POLICIES = {"full": "full", "h2o": "h2o(sinks=4)", "recent": "streaming(sinks=0)"}


def small() -> Any:
    """Three layers of width 64."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LENGTH}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes, **heads))


@measured(steps=[250])
def decoded(steps: int) -> dict[str, float]:
    """Nats a character of the second half of texts read one by one, and the most that a kv head holds after a step."""
    model, codes = small(), characters(False)

    def loss(ready: Any, generator: Generator) -> Tensor:
        ids = windows(codes, SIZE, LENGTH, generator)
        return ready(input_ids=ids, labels=ids, use_cache=False).loss

    with swap(model, GROUPS):
        fit(model, loss, Recipe(steps))
    model.eval()
    ids, found = windows(characters(True), TEXTS, LENGTH, Generator().manual_seed(5)), {}
    for name, policy in POLICIES.items():
        found |= {f"{name} {what}": value for what, value in told(model, policy, ids).items()}
    return found


@torch.no_grad()
def told(model: Any, policy: str, ids: Tensor) -> dict[str, float]:
    """The loss of the second halves, and the longest that a kv head's cache was between steps."""
    cache, logits, most, half = DynamicCache(config=model.config), [], 0, LENGTH // 2
    with compress(model, policy, BUDGET):
        for part in (ids[:, :half], *ids[:, half:].split(1, 1)):
            logits.append(model(input_ids=part, **caches.given(model, cache)).logits[:, -1:])
            held = [at for layer in Stored(cache).layers.values() for b in range(len(ids)) for at in layer.positions(b)]
            most = max(most, *(len(at) for at in held))
    says = torch.cat(logits[:-1], 1).flatten(0, 1)
    return {"loss": torch.nn.functional.cross_entropy(says, ids[:, half:].flatten()).item(), "most": float(most)}


def within_its_budget(found: Figures) -> Finding:
    """No kv head holds more than the budget; the loss is below that of as many recent tokens."""
    mine, recent, full = (found.one(f"{name} loss") for name in ("h2o", "recent", "full"))
    figure = (
        f"at most {found.one('h2o most'):.0f} of {BUDGET} tokens a head; {mine:.3f} nats a character, {recent:.3f} "
        f"with recent tokens alone, {full:.3f} with all {LENGTH}"
    )
    return Finding.of(figure, found.one("h2o most") <= BUDGET, mine < recent)
