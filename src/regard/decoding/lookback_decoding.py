"""Guided decoding by lookback ratios: of several sampled pieces the one goes on that looks most at the text."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place, Where
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.decoding.base import Request, Strategy
from regard.hosts import caches
from regard.hosts.attach import attach


@published(
    "lookback_decoding",
    family="steering",
    kind="decoding",
    row=80,
    title="Lookback Lens: Detecting and Mitigating Contextual Hallucinations in Large Language Models Using Only "
    "Attention Maps",
    arxiv="2407.07071",
    year=2024,
    fidelity="hand values",
    claim=Claim(
        "guided by the ratios' classifier fewer answers are wrong than sampled ones: numbers to copy in SmolLM2",
        cells="lookback.guided",
        holds="lookback.fewer_errors",
    ),
)
class LookbackDecoding(Strategy):
    """Sampling in pieces of several tokens, of which a linear classifier of lookback ratios keeps one.

        f = mean over the piece's tokens of LR_lh,   LR_lh = given / (given + said),   score = w·f + b

    ``given`` is a head's mean attention to the text, ``said`` to what follows it, of the row that gives the token, as
    in the authors' code. Of ``candidates`` pieces of ``length`` tokens that of the best score goes on, with its cache;
    a sequence ends with a piece that does. All pieces are sampled in one batch.

    Args:
        weight: w, ``(layers · heads,)``, layer by layer; `fitted` learns it. bias: b. candidates: pieces, the authors'
            8; with 1 it is plain sampling, as greedy decoding is with any number. length: of a piece, the authors' 8.
        question: how many of the prompt's last tokens are no part of the text, at least the one that is continued.

    Raises:
        ValueError: no candidates, length or question; while it decodes, a weight of another size than the model has
            heads, or a prompt that is no longer than its question.

    Paper: Chuang et al., arXiv 2407.07071.
    """

    dial: ClassVar[tuple[str, float] | None] = ("candidates", 1)

    def __init__(
        self, weight: Tensor, bias: float = 0.0, candidates: int = 8, length: int = 8, question: int = 1
    ) -> None:
        for name, number in (("candidates", candidates), ("length", length), ("question", question)):
            if number < 1:
                raise wrong(name, str(number), "at least 1")
        self.weight, self.bias = weight, bias
        self.candidates, self.length, self.question = candidates, length, question

    def decode(self, request: Request) -> Any:
        looking = Ratios(request, self.question)
        with torch.no_grad(), attach(request.model, edits=[looking]):
            pieces = Pieces(request, looking)
            if pieces.looked.shape[1] != len(self.weight):
                raise wrong("weight", f"{len(self.weight)} numbers", f"{pieces.looked.shape[1]}, one for each head")
            while not pieces.ended.all():
                pieces.spread(self.candidates)
                pieces.grow(self.length)
                pieces.keep(best(pieces.means @ self.weight.to(pieces.means) + self.bias, self.candidates))
        out = pieces.ids
        return GenerateDecoderOnlyOutput(sequences=cast(Any, out)) if request.config.return_dict_in_generate else out

    @classmethod
    def examples(cls) -> list[Sample]:
        weight = torch.linspace(-9, 9, 12)
        return [Sample("pieces of 2", cls(weight, 0.5, 4, 2)), Sample("one piece", cls(weight, 0.0, 3, 30, 2))]


def best(scores: Tensor, candidates: int) -> Tensor:
    """Of each sequence's candidates in turn the row of the best score, the first of equals."""
    each = scores.view(-1, candidates)
    places = torch.arange(candidates, device=each.device).expand_as(each)
    first = places.masked_fill(each < each.amax(1, keepdim=True), candidates).amin(1)
    return torch.arange(len(each), device=each.device) * candidates + first


class Ratios(Edit):
    """Reads every head's lookback ratio in each pass's newest row, and changes nothing.

    Args:
        request: of which the prompts are. question: how many of their last tokens are no part of the text.
    """

    def __init__(self, request: Request, question: int) -> None:
        super().__init__(Where(rows="last"))
        self.given = mask_of(request).sum(1) - question
        if int(self.given.min()) < 1:
            short = int(self.given.min()) + question
            raise wrong("question", f"{question} of a prompt of {short} tokens", "fewer, so that a text is left")
        self.kept: dict[int, Tensor] = {}

    def groups(self, place: Place) -> Tensor:
        at = place.key_positions
        return ((at >= 0) & (at < self.given[:, None]))[:, None].long()

    def masses(self, m: Tensor, place: Place) -> None:
        given = self.given[:, None].to(m)
        said = (place.query_positions[:, -1:] + 1).to(m) - given
        if bool((said > 0).all()):
            looked = m[:, :, -1, 1] / given
            self.kept[place.layer] = looked / (looked + m[:, :, -1, 0] / said)

    def latest(self) -> Tensor:
        """``(rows, layers · heads)`` of the pass that has just ended."""
        return torch.cat([self.kept[layer] for layer in sorted(self.kept)], 1)


class Pieces:
    """Sequences that go on by pieces, with one cache for all.

    Args:
        request: what `generate` has prepared. looking: reads the ratios of its model.
    """

    def __init__(self, request: Request, looking: Ratios) -> None:
        self.request, self.looking = request, looking
        self.ids, self.mask, self.cache = request.ids, mask_of(request), DynamicCache(config=request.model.config)
        self.ended = torch.zeros(len(self.ids), dtype=torch.bool, device=self.ids.device)
        self.logits = self.looked = self.ids
        size = request.config.prefill_chunk_size or self.ids.shape[1]
        for start in range(0, self.ids.shape[1], size):
            self.run(slice(start, start + size))

    def run(self, part: slice) -> None:
        """Reads some of the tokens: what follows the last of them, and where its row looks."""
        model, mask = self.request.model, self.mask[:, : part.stop]
        takes = inspect.signature(model.forward).parameters
        given: dict[str, Any] = {"attention_mask": mask, "use_cache": True, **caches.given(model, self.cache)}
        if "position_ids" in takes:
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, part]
        self.logits = model(input_ids=self.ids[:, part], **given).logits[:, -1].float()
        if self.looking.kept:
            self.looked = self.looking.latest()

    def pick(self, rows: Tensor) -> None:
        """These sequences, in this order, some perhaps more than once."""
        self.cache.batch_select_indices(rows)
        self.looking.given = self.looking.given[rows]
        for name in ("ids", "mask", "ended", "logits", "looked"):
            setattr(self, name, getattr(self, name)[rows])

    def spread(self, candidates: int) -> None:
        """Each of them so many times."""
        if candidates > 1:
            self.pick(torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(candidates))

    def grow(self, length: int) -> None:
        """Each by so many tokens, or to its end; `means` are of the ratios of the rows that gave them."""
        config = self.request.config
        sums, counts = torch.zeros_like(self.looked), self.looked.new_zeros(len(self.ids), 1)
        for _ in range(length):
            live = (~self.ended)[:, None]
            sums, counts = sums + self.looked * live, counts + live
            scores = self.request.processors(cast(Any, self.ids), cast(Any, self.logits))
            sampled = torch.multinomial(scores.softmax(-1), 1) if config.do_sample else scores.argmax(-1, keepdim=True)
            pad = config._pad_token_tensor
            token = torch.where(live, sampled, 0 if pad is None else pad)
            self.ids = torch.cat([self.ids, token], 1)
            self.mask = torch.cat([self.mask, torch.ones_like(token)], 1)
            self.ended = self.ended | self.request.criteria(self.ids, None).to(self.ended.device)
            if self.ended.all():
                break
            self.run(slice(self.ids.shape[1] - 1, self.ids.shape[1]))
        self.means = sums / counts.clamp(min=1)

    def keep(self, rows: Tensor) -> None:
        """These rows go on."""
        if len(rows) < len(self.ids):
            self.pick(rows)


def mask_of(request: Request) -> Tensor:
    """``(b, n)`` int64: 0 = padding."""
    given = request.inputs.get("attention_mask")
    return torch.ones_like(request.ids) if given is None else given.long()


def fitted(ratios: Tensor, stands: Tensor, penalty: float = 1.0) -> tuple[Tensor, float]:
    """``(w, b)`` of the logistic classifier of ratios ``(pieces, layers · heads)``: which pieces stand in the text.

    least Σ −log p(stands) + penalty · ‖w‖² / 2
    """
    weight = torch.zeros(ratios.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x, y = ratios.double(), stands.double()
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> float:
        solver.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="sum")
        value = value + penalty * weight.square().sum() / 2
        value.backward()
        return value.item()

    solver.step(loss)
    return weight.detach().float(), bias.item()


def ratios_of(model: PreTrainedModel, ids: Tensor, given: int, start: int) -> Tensor:
    """The mean ratios, ``(layers · heads,)``, of the rows that give the tokens of one text from ``start`` on.

    Args:
        ids: ``(n,)``. given: how many tokens are the text that is looked at, fewer than ``start``.
    """
    from regard.analysis.base import Prompt
    from regard.analysis.lookback import lookback_ratios

    if not 0 < given < start < len(ids):
        raise wrong("given", f"{given} of {len(ids)} tokens, with an answer from {start}", "a text before the answer")
    return lookback_ratios(model, Prompt(ids[:-1], answer=given))[start - 1 - given :].mean(0)
