"""A pretrained text encoder that sees only what attention by layout picks out of the page."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertModel

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.networks.skimformer.attention import Skim


class SkimmingMask:
    """A BERT-type encoder in which each word attends to the k words that layout gives most weight to.

        M_hij = 1 where A_hij is one of the k largest of row i, and j is a word;   A = Skim(boxes)

    The same M in all layers. With k of n or more it is the encoder itself.

    Args:
        model: a Transformers BertModel. skim: where A comes from, such as ``Skimformer.skim`` once trained, with as
            many heads as the model, or one for all of them. top: k.

    Raises:
        TypeError: another kind of model. ValueError: other heads, or ``top`` below 1.

    Paper: Nguyen et al., arXiv 2109.01078.
    """

    def __init__(self, model: BertModel, skim: Skim, top: int) -> None:
        if not isinstance(model, BertModel):
            raise wrong("model", type(model).__name__, "a BertModel", TypeError)
        heads = model.config.num_attention_heads
        if skim.heads not in (1, heads):
            raise wrong("skim", f"{skim.heads} heads", f"1, or the {heads} of the model")
        if top < 1:
            raise wrong("top", str(top), "at least 1")
        self.model, self.skim, self.top = model, skim, top

    def mask(self, boxes: Tensor, keys: Tensor | None = None) -> Tensor:
        """M ``(b, h, n, n)`` bool of ``boxes (b, n, 4)``; ``key_mask (b, n)`` False marks padding."""
        weights, layout = self.skim(boxes, Layout(key_mask=keys)), Layout(key_mask=keys)
        n = weights.shape[3]
        best = weights.topk(min(self.top, n)).indices
        picked = torch.zeros_like(weights, dtype=torch.bool).scatter_(3, best, True)
        return picked & layout.allowed(n, n, weights.device)

    def __call__(self, ids: Tensor, boxes: Tensor, keys: Tensor | None = None) -> Tensor:
        """Hidden states ``(b, n, width)`` of ``ids (b, n)`` int64; those of padding are unspecified."""
        least = torch.finfo(self.model.dtype).min
        added = torch.zeros((), dtype=self.model.dtype, device=ids.device).masked_fill(~self.mask(boxes, keys), least)
        return self.model(input_ids=ids, attention_mask=added).last_hidden_state
