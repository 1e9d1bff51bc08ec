"""How long a decoder's step takes with keys and values of the source in its cache, and with expanded queries."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.hosts import caches
from regard.hosts.expanded import ExpandedCross

STEPS, WARM = 24, 4


def bart() -> Any:
    """Two layers of BART's base, with random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 768, "decoder_ffn_dim": 3072}
    heads: dict[str, Any] = {"d_model": 768, "encoder_attention_heads": 12, "decoder_attention_heads": 12}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=64, max_position_embeddings=2048, **sizes, **heads)
    ).eval()


def seconds(model: Any, states: torch.Tensor) -> tuple[float, int]:
    """``(CPU time of a step, the median; bytes that are cached of the source)``."""
    cache: Any = None
    spent = []
    with torch.no_grad():
        for _ in range(STEPS):
            ids = torch.full((len(states), 1), 5)
            given = {} if cache is None else caches.given(model, cache)
            begun = time.process_time()
            out = model(encoder_outputs=(states,), decoder_input_ids=ids, use_cache=True, **given)
            spent.append(time.process_time() - begun)
            cache = next(caches.found(out.values()))
    layers = cache.cross_attention_cache.layers
    held = sum(part.numel() * 4 for layer in layers for part in (layer.keys, layer.values) if part is not None)
    return statistics.median(spent[WARM:]), held


@measured(source=[128, 1024], rows=[1, 8])
def decoding(source: int, rows: int) -> dict[str, float]:
    """A step's time over that with the cache of the source, and its bytes over those of the states; rows are beams."""
    model, states = bart(), torch.randn(rows, source, 768, generator=torch.Generator().manual_seed(1))
    usual, held = seconds(model, states)
    with ExpandedCross(model):
        expanded, none = seconds(model, states)
    return {"time": expanded / usual, "cached": held / (states.numel() * 4), "left": float(none)}


def no_slower(found: Figures) -> Finding:
    """In every setting a step takes no longer; nothing is cached of the source beside its states."""
    told = [
        f"{row['time']:.2f} of the time with {row['source']} tokens of the source and {row['rows']} rows"
        for row in found.rows
    ]
    spared = f"the cache of the source, {found('cached')[0]:.0f} times its states with 2 layers, is gone"
    return Finding.of(f"{', '.join(told)}; {spared}", max(found("time")) <= 1.0, max(found("left")) == 0)
