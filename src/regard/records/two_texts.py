"""Records of an encoder–decoder: what its encoder read, what its decoder wrote, and where each looks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

import torch

from regard.core.errors import wrong
from regard.core.tile import Probe, Tile
from regard.hosts.attention_interface import host
from regard.hosts.session import Layer
from regard.hosts.small import title
from regard.records.predictions import Logits
from regard.records.token_texts import Tokens, decode, unnamed

Kind = TypeVar("Kind", bound=Probe)


class EncoderDecoder:
    """An encoder–decoder of Transformers with the text that its encoder reads.

    Args:
        model: such as of T5 or Marian, with its head where it is to generate. source: the encoder's tokens.
    """

    def __init__(self, model: Any, source: Tokens) -> None:
        model = host(model)
        self.model, self.source = model, source
        self.architecture = type(model).__name__
        self.name = title(model.config.name_or_path) or self.architecture
        self.longest: int | None = getattr(model.config, "max_position_embeddings", None)
        self.vocabulary: int = model.config.vocab_size
        self.depth: int | None = None
        if self.longest is not None and len(source) > self.longest:
            most = f"at most {self.longest:,}, the positions of {self.architecture}"
            raise wrong("text", f"{len(source):,} tokens", most)

    def begun(self, tokenizer: Any, target: str | Sequence[int] | None) -> Tokens:
        """The decoder's tokens: the one that it begins with, and those of ``target``.

        Raises:
            ValueError: a text without a tokenizer; a model that does not say what its decoder begins with.
        """
        start = self.model.config.decoder_start_token_id
        if start is None:
            raise wrong("model", f"{self.architecture} without decoder_start_token_id", "a configuration that has it")
        if isinstance(target, str):
            if tokenizer is None:
                raise wrong("tokenizer", "None", "a tokenizer, or token ids for target")
            target = list(tokenizer(text_target=target)["input_ids"])
            target = target[:-1] if target and target[-1] == self.model.config.eos_token_id else target
        ids = [int(start), *(int(i) for i in target or ())]
        return unnamed(ids) if tokenizer is None else decode(tokenizer, ids)

    def batch(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self.model.device)

    def continued(self, ids: Sequence[int], more: int) -> list[int]:
        """The decoder's ids with up to ``more`` greedily generated ones."""
        if not self.model.can_generate():
            raise wrong("generate", str(more), f"0: {self.architecture} does not generate")
        texts = {"input_ids": self.batch(self.source.ids), "decoder_input_ids": self.batch(ids)}
        return self.model.generate(**texts, max_new_tokens=more, do_sample=False, num_beams=1)[0].tolist()

    @torch.no_grad()
    def run(self, ids: Sequence[int], predict: bool = False) -> Logits | None:
        """One pass over both texts; the logits of all rows of the decoder, where they are wanted and there are any.

        The encoder runs by itself first, so that the decoder's pass is one of its own tokens.
        """
        accepted = inspect.signature(self.model.forward).parameters
        states = self.model.get_encoder()(input_ids=self.batch(self.source.ids))
        more = {"use_cache": False} if "use_cache" in accepted else {}
        out = self.model(encoder_outputs=states, decoder_input_ids=self.batch(ids), **more)
        if not predict or getattr(out, "logits", None) is None:
            return None
        return lambda rows: out.logits[0, rows]

    def reads(self, layer: Layer) -> list[str]:
        """Whose tokens the queries and whose the keys of a layer are."""
        if layer.cross:
            return ["target", "source"]
        encoder = self.model.get_encoder()
        within = any(
            module is encoder and layer.name.startswith(f"{name}.") for name, module in self.model.named_modules()
        )
        return ["source", "source"] if within else ["target", "target"]


class WithinText(Generic[Kind]):
    """A probe that is shown the layers alone whose keys are the queries' own tokens.

    Args:
        probe: one that compares tokens or places of the two, which means nothing between two texts.
    """

    def __init__(self, probe: Kind) -> None:
        self.probe, self.name = probe, probe.name

    def update(self, tile: Tile) -> None:
        if not tile.cross:
            self.probe.update(tile)

    def merge(self, other: Self) -> None:
        self.probe.merge(other.probe)

    def result(self) -> Any:
        return self.probe.result()
