"""A decoding strategy: next tokens from several runs of a model at once, inside of Transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerationMode

from regard.core.dial import Dialled
from regard.core.edit import Edit, Where
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.hosts.attach import attach

USUAL = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


@dataclass(frozen=True)
class Request:
    """What `generate` has prepared for its own loop.

    Args:
        model: that generates. ids: ``(b, n)``. processors: of logits, warpers of sampling among them. criteria: of
            stopping. config: of the generation. inputs: everything else that the model is given.
    """

    model: PreTrainedModel
    ids: Tensor
    processors: LogitsProcessorList
    criteria: Any
    config: GenerationConfig
    inputs: Mapping[str, Any]


class Strategy(Dialled):
    """The base of every decoding strategy: a callable for `generate(custom_generate=…)` of any causal model.

        model.generate(**batch, custom_generate=Contrast([KnockOut([(4, 9)])], weight=0.5))

    `decode` gets what `generate` has prepared, as a `Request`. Transformers hands no streamer on to a callable.
    Idle it is plain decoding.

    Raises, when it decodes:
        ValueError: beams, or another mode of generation; a cache that holds tokens already. TypeError: an
        encoder–decoder model.
    """

    called: ClassVar[str] = "a strategy"
    draws: ClassVar[bool] = True
    """Whether tokens may be sampled; else it decodes greedily and refuses ``do_sample``."""

    def decode(self, request: Request) -> Any:
        """The sequences ``(b, n)`` with what follows them, or what ``return_dict_in_generate`` asks for."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list[Sample]:
        """Small instances that the laws examine: see `laws.decoding`."""
        raise NotImplementedError

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **inputs: Any,
    ) -> Any:
        """What `generate` calls in the place of its own loop."""
        checked(model, generation_config, inputs)
        if generation_config.do_sample and not self.draws:
            raise wrong("do_sample", "True", f"False: {type(self).__name__} decodes greedily")
        return self.decode(Request(model, input_ids, logits_processor, stopping_criteria, generation_config, inputs))


class Mixture(Strategy):
    """The base of strategies that mix the next-token distributions of several copies of each sequence.

    Copy j of a sequence is the same tokens run under `edits` of its own, and whatever `around` puts into the model;
    copies stand side by side in the batch, so that one pass and one cache serve all of them. `mixed` makes one
    distribution of theirs, which then meets the processors, warpers and stopping criteria of `generate`; all copies go
    on with the token that was chosen. Any cache that `generate` makes, padded batches and prefill in chunks are
    followed.

    Shapes: ``mixed`` takes ``(b, copies, vocabulary)`` float32 and gives ``(b, vocabulary)``.
    """

    @property
    def copies(self) -> int:
        """How many copies of each sequence are run; the first is the model as it is."""
        raise NotImplementedError

    def edits(self, copy: int) -> Sequence[Edit]:
        """What is changed of the model in one of the copies."""
        return ()

    def around(self, model: PreTrainedModel, copies: Sequence[int]) -> AbstractContextManager[Any]:
        """What else is put into the model while it runs rows of which each sequence has these ``copies``, in turn."""
        return ExitStack()

    def mixed(self, logits: Tensor) -> Tensor:
        """One vector of logits of those of the copies."""
        raise NotImplementedError

    def running(self, model: PreTrainedModel, sequences: int, copies: Sequence[int]) -> ExitStack:
        """The model as it runs these copies of so many sequences, for the length of a ``with`` block."""
        stack = ExitStack()
        edits = [
            confined(edit, sequences, len(copies), place) for place, c in enumerate(copies) for edit in self.edits(c)
        ]
        stack.enter_context(self.around(model, copies))
        if edits:
            stack.enter_context(attach(model, edits=edits))
        return stack

    def decode(self, request: Request) -> Any:
        count, chosen = self.copies, Chosen(self.copies, bool(request.config.do_sample))
        processors = LogitsProcessorList([Mixing(self), *request.processors, chosen])
        plan = copy(request.config)
        plan.do_sample = False  # it is `Chosen` that draws, once for all copies of a sequence
        host: Any = request.model  # whose own loop is no public method
        ids, inputs = host._expand_inputs_for_generation(
            expand_size=count, is_encoder_decoder=False, input_ids=request.ids, **request.inputs
        )
        with self.running(request.model, len(request.ids), range(count)):
            out = host._sample(ids, processors, request.criteria, generation_config=plan, **inputs)
        if isinstance(out, Tensor):
            return out[::count]
        out.sequences = out.sequences[::count]
        if out.scores is not None:
            out.scores = tuple(chosen.scores)
        if out.logits is not None:
            out.logits = tuple(step[::count] for step in out.logits)
        return out


class Mixing(LogitsProcessor):
    """The copies' logits, mixed: the same for all copies of a sequence."""

    def __init__(self, strategy: Mixture) -> None:
        self.strategy = strategy

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        count = self.strategy.copies
        return self.strategy.mixed(scores.unflatten(0, (-1, count))).repeat_interleave(count, 0)


class Chosen(LogitsProcessor):
    """The last of the processors: of each sequence's scores one token, drawn once for all of its copies, remains.

    Args:
        count: copies of a sequence. draws: whether a token is drawn; else it is the most likely one.
    """

    def __init__(self, count: int, draws: bool) -> None:
        self.count, self.draws = count, draws
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        own = scores[:: self.count]
        self.scores.append(own)
        if not self.draws:
            return scores
        drawn = torch.multinomial(own.softmax(-1), 1).repeat_interleave(self.count, 0)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def confined(edit: Edit, sequences: int, count: int, place: int) -> Edit:
    """An edit of sequences as one of their copies at this ``place`` among so many."""
    old = edit.where
    rows = range(sequences) if old.batch is None else old.batch
    keys = old.keys
    if isinstance(keys, Mapping):
        keys = {row * count + place: spans for row, spans in keys.items()}
    where = Where(old.layers, old.heads, old.rows, old.keys, old.tokens)
    return edit.but(where=replace(where, keys=keys, batch=[row * count + place for row in rows]))


def checked(model: PreTrainedModel, config: GenerationConfig, inputs: Mapping[str, Any]) -> None:
    """Raises for what a strategy cannot follow."""
    if model.config.is_encoder_decoder:
        raise wrong("model", type(model).__name__, "a decoder alone: its encoder's states are not copied", TypeError)
    mode = config.get_generation_mode()
    if mode not in USUAL:
        raise wrong("generate", mode.value.replace("_", " "), "greedy or sampled decoding: num_beams=1, no assistant")
    for name, thing in inputs.items():
        length = getattr(thing, "get_seq_length", None)
        if callable(length) and length():
            raise wrong(name, f"a cache of {length()} tokens", "an empty one or none, and all of the text as input_ids")
