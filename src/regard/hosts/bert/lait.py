"""Encoding several segments at an adjustable depth of interaction: apart in the first layers, jointly afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network, numbered


@published(
    "lait",
    family="sparse",
    kind="network",
    row=335,
    title="LAIT: Efficient Multi-Segment Encoding in Transformers with Layer-Adjustable Interaction",
    arxiv="2305.19585",
    year=2023,
    aliases=("layer_adjustable_interaction",),
    claim=Claim(
        text="no layers apart is the encoder itself; cached segments equal those encoded anew; fewer attention FLOPs "
        "at little loss on a pair task",
        status="partly",
        figure="P = 0 and cached on MiniLM: equal to 1e-6 and 1e-5; of two segments of 64 tokens P = 4 of 6 layers "
        "spares 33% of the pairs; the fine-tuned pair task is not measured",
        command="pytest tests/claims/test_lait.py",
    ),
)
class LayerAdjustable(Network):
    """A BERT-type encoder whose first P layers see each segment alone, so that segments can be encoded once and kept.

        h_s = layer_P(… layer_1(embed(segment s at its own positions))),   out = layer_L(… layer_{P+1}([h_1 … h_S]))

    With P = 0 positions run on through the segments, as the encoder has them; with P = L it is a dual encoder.

    Args:
        model: a Transformers BertModel. apart: P, the layers that see segments alone.

    Raises:
        TypeError: another kind of model. ValueError: ``apart`` outside of 0 … its layers.

    Paper: Milbauer et al., arXiv 2305.19585.
    """

    def __init__(self, model: BertModel, apart: int) -> None:
        if not isinstance(model, BertModel):
            raise wrong("model", type(model).__name__, "a BertModel", TypeError)
        super().__init__()
        self.model, self.apart = model, apart
        if not 0 <= apart <= len(self.layers):
            raise wrong("apart", str(apart), f"0 to the model's {len(self.layers)} layers")

    @property
    def layers(self) -> list[Any]:
        return list(cast(Any, self.model).encoder.layer)

    def encode(self, ids: Tensor, kind: int = 0) -> Tensor:
        """One segment ``(b, n)`` through the first P layers: ``(b, n, width)``, what a cache would keep.

        ``kind`` is its token type.
        """
        if self.apart == 0:
            raise wrong("apart", "0", "1 or more layers that see a segment alone")
        return run(self.layers[: self.apart], self.embed(ids, torch.full_like(ids, kind), 0))

    def embed(self, ids: Tensor, kinds: Tensor, first: int) -> Tensor:
        """Embeddings of tokens at the positions from ``first``."""
        places = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
        return cast(Any, self.model).embeddings(input_ids=ids, token_type_ids=kinds, position_ids=places)

    def join(self, segments: Sequence[Tensor]) -> Tensor:
        """The remaining layers over encoded segments ``(b, n_s, width)`` side by side: ``(b, Σ n_s, width)``."""
        if not segments or len({x.shape[0] for x in segments}) != 1:
            raise wrong("segments", f"batches of {[x.shape[0] for x in segments]}", "one or more of equal batches")
        return run(self.layers[self.apart :], torch.cat(list(segments), dim=1))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": segments, "output": (11 + 7, 24)}
        return [
            Sample(f"{p} of 3 layers apart", cls(small(), p), {**given, "again": lambda p=p: cls(small(7), p)})
            for p in (0, 2, 3)
        ]

    def intermediates(self, *segments: Tensor) -> dict[str, Tensor]:
        """A of each layer, by its number, and for every segment that it sees alone."""
        maps: dict[str, Tensor] = {}
        before = str(self.model.config._attn_implementation)
        hooks = [
            cast(Any, layer).attention.self.register_forward_hook(
                lambda _, given, out, name=f"layers.{i}": maps.__setitem__(numbered(maps, name), out[1])
            )
            for i, layer in enumerate(self.layers)
        ]
        self.model.set_attn_implementation("eager")  # PyTorch's own attention gives no weights
        try:
            self(*segments)
        finally:
            self.model.set_attn_implementation(before)
            for hook in hooks:
                hook.remove()
        return maps

    def forward(self, *segments: Tensor) -> Tensor:
        """Hidden states of all segments ``(b, n_s)`` int64; the first has token type 0, the others 1."""
        if not segments:
            raise wrong("segments", "none", "one or more")
        if self.apart:
            return self.join([self.encode(ids, min(place, 1)) for place, ids in enumerate(segments)])
        kinds = torch.cat([torch.full_like(ids, min(place, 1)) for place, ids in enumerate(segments)], dim=1)
        return run(self.layers, self.embed(torch.cat(segments, dim=1), kinds, 0))

    def pairs(self, lengths: Sequence[int]) -> int:
        """Pairs of tokens that attention looks at, over all layers."""
        joint = len(self.layers) - self.apart
        return self.apart * sum(n * n for n in lengths) + joint * sum(lengths) ** 2


def run(layers: Sequence[Any], x: Tensor) -> Tensor:
    """Hidden states through some of the encoder's layers."""
    for layer in layers:
        out = layer(x)
        x = out[0] if isinstance(out, tuple) else out
    return x


def small(seed: int = 0) -> BertModel:
    """An encoder of three narrow layers, for the laws."""
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "intermediate_size": 17,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertModel(BertConfig(vocab_size=29, max_position_embeddings=23, **sizes), add_pooling_layer=False).eval()


def segments(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two random segments, for the laws."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(29, (batch, n), generator=generator) for n in (11, 7))
    return first, second
