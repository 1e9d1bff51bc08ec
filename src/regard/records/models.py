"""What a record is made of: a Transformers model, or a language model of ours, by the same few questions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.hosts.small import title
from regard.networks import LM
from regard.records.predictions import Logits, head_of


class TransformersModel:
    """A Transformers model of one text: a decoder or an encoder.

    Raises:
        TypeError: no such model.
    """

    def __init__(self, model: Any) -> None:
        from regard.hosts.attention_interface import host

        model = host(model)
        name = type(model).__name__
        text = model.config.get_text_config()
        self.model, self.architecture, self.name = model, name, title(model.config.name_or_path) or name
        self.depth: int | None = getattr(text, "num_hidden_layers", None)
        self.longest: int | None = getattr(text, "max_position_embeddings", None)
        self.vocabulary: int = getattr(text, "vocab_size", 0)

    def continued(self, ids: Sequence[int], more: int) -> list[int]:
        """The ids with up to ``more`` greedily generated ones."""
        if not self.model.can_generate():
            raise wrong("generate", str(more), f"0: {self.architecture} does not generate")
        prompt = torch.tensor([list(ids)], device=self.model.device)
        mask = torch.ones_like(prompt)
        return self.model.generate(prompt, attention_mask=mask, max_new_tokens=more, do_sample=False)[0].tolist()

    @torch.no_grad()
    def run(self, ids: Sequence[int], predict: bool = False) -> Logits | None:
        """One pass that computes no more than it must; the logits of all rows, where they are wanted and known."""
        accepted = inspect.signature(self.model.forward).parameters
        wanted = {name: value for name, value in {"use_cache": False, "logits_to_keep": 1}.items() if name in accepted}
        predict = predict and self.model.can_generate() and self.model.get_output_embeddings() is not None
        states: list[Tensor] = []
        body = self.model.base_model
        hook = body.register_forward_hook(lambda module, given, out: states.append(out[0])) if predict else None
        try:
            out = self.model(input_ids=torch.tensor([list(ids)], device=self.model.device), **wanted)
        finally:
            if hook is not None:
                hook.remove()
        if not predict:
            return None
        if out.logits.shape[1] == len(ids):
            return lambda rows: out.logits[0, rows]
        return head_of(self.model, states[-1], out.logits[0, -1:])


class LMModel:
    """A language model of ours, of any mechanisms."""

    longest: int | None = None

    def __init__(self, model: LM) -> None:
        self.model, self.name, self.architecture = model, "LM", f"LM of {model.config.layers}"
        self.vocabulary = model.config.vocabulary
        self.depth: int | None = model.config.depth

    def continued(self, ids: Sequence[int], more: int) -> list[int]:
        """The ids with ``more`` greedily generated ones."""
        return [*ids, *self.model.generate(self.batch(ids), more)[0].tolist()]

    @torch.no_grad()
    def run(self, ids: Sequence[int], predict: bool = False) -> Logits | None:
        """One pass; its logits, where they are wanted."""
        logits = self.model(self.batch(ids))
        return (lambda rows: logits[0, rows]) if predict else None

    def batch(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self.model.embedding.weight.device)
