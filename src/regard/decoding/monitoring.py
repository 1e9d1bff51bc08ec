"""Monitoring decoding: a reference model watches each token, and doubtful ones are thought over as a tree."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation import GenerateDecoderOnlyOutput

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.decoding.base import Request, Strategy
from regard.hosts import caches


@published(
    "monitoring_decoding",
    family="steering",
    kind="decoding",
    row=194,
    title="Monitoring Decoding: Mitigating Hallucination via Evaluating the Factuality of Partial Response",
    arxiv="2503.03106",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "of a damaged model's answers more are right than of five samples' majority, for at most half of the tokens",
        cells="decoding.monitored",
        holds="decoding.repairs",
    ),
)
class MonitoringDecoding(Strategy):
    """Greedy decoding in pieces of m tokens, in which a doubtful token becomes the k likeliest, and the best is kept.

        doubtful:  r(x) < τ p(x),   p of the model, r of the reference
        a branch's score:  mean of log r over its tokens of the piece

    A branch takes the model's likeliest token, or, where that is doubtful, the ``candidates`` likeliest; the ``width``
    branches of the highest scores remain, and at the end of a piece the best one goes on alone. So the model proposes
    and the reference only judges.

    Args:
        reference: a causal model of the same vocabulary. threshold: τ; at 0 nothing is doubtful, and it is greedy
            decoding. length: m. candidates: k. width: branches at a time.

    Raises:
        ValueError: a threshold below 0, another number below 1, a reference of another vocabulary; sampling.

    Paper: arXiv 2503.03106, of which the abstract alone was at hand: the monitor's function, the score and the pruning
    are ours.
    """

    dial: ClassVar[tuple[str, float] | None] = ("threshold", 0.0)
    draws: ClassVar[bool] = False

    def __init__(
        self, reference: PreTrainedModel, threshold: float = 0.3, length: int = 8, candidates: int = 3, width: int = 4
    ) -> None:
        if not threshold >= 0:
            raise wrong("threshold", str(threshold), "a ratio of probabilities from 0 on")
        for name, number in (("length", length), ("candidates", candidates), ("width", width)):
            if number < 1:
                raise wrong(name, str(number), "at least 1")
        self.reference, self.threshold = reference, threshold
        self.length, self.candidates, self.width = length, candidates, width

    def decode(self, request: Request) -> Any:
        model = request.model
        sizes = [one.config.get_text_config().vocab_size for one in (model, self.reference)]
        if sizes[0] != sizes[1]:
            raise wrong("reference", f"a vocabulary of {sizes[1]}", f"that of the model, of {sizes[0]} tokens")
        mask = request.inputs.get("attention_mask")
        found = []
        for row, ids in enumerate(request.ids):
            before = 0 if mask is None else int((mask[row] == 0).sum())
            new = self.continued(model, ids, before, request.processors, request.criteria)
            found.append(torch.cat([ids, new]))
        pad = request.config._pad_token_tensor
        out = pad_sequence(found, batch_first=True, padding_value=0 if pad is None else int(pad))
        return GenerateDecoderOnlyOutput(sequences=cast(Any, out)) if request.config.return_dict_in_generate else out

    def continued(
        self, model: PreTrainedModel, ids: Tensor, before: int, processors: LogitsProcessorList, criteria: Any
    ) -> Tensor:
        """What follows one sequence, whose first ``before`` ids are padding."""
        branches = Branches(model, self.reference, ids, before)
        while True:
            for _ in range(self.length):
                if branches.ended.all():
                    break
                branches.grow(*self.proposed(branches, processors))
                branches.end(criteria)
            branches.keep(branches.means.argmax()[None])
            if branches.ended.all():
                return branches.ids[0, len(ids) : int(branches.lengths[0])]
            branches.sums.zero_()
            branches.counts.zero_()

    def proposed(self, branches: Branches, processors: LogitsProcessorList) -> tuple[Tensor, Tensor]:
        """``(branch, token)`` of the branches that are kept, of each its parent and its next token."""
        logits, judged = branches.logits
        scores = processors(cast(Any, branches.ids), cast(Any, logits)).log_softmax(-1)
        likeliest, tokens = scores.topk(min(self.candidates, scores.shape[-1]), -1)
        judgement = judged.log_softmax(-1).gather(1, tokens)
        doubtful = judgement[:, 0] < likeliest[:, 0] + torch.tensor(self.threshold, dtype=scores.dtype).log()
        open_ = torch.zeros_like(tokens, dtype=torch.bool)
        open_[:, 0] = True
        open_ |= (doubtful & ~branches.ended)[:, None] & likeliest.isfinite()
        fresh = (~branches.ended).to(judgement)[:, None]
        means = (branches.sums[:, None] + judgement * fresh) / (branches.counts[:, None] + fresh).clamp(min=1)
        kept = min(self.width, int(open_.sum()))
        chosen = means.masked_fill(~open_, -torch.inf).flatten().topk(kept).indices.sort().values
        parents, places = chosen // tokens.shape[1], chosen % tokens.shape[1]
        branches.judged = judgement[parents, places]
        return parents, tokens[parents, places]

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("pieces of 3", cls(small(1), 0.8, 3, 3, 2)), Sample("all doubtful", cls(small(2), 1e9, width=3))]


class Branches:
    """Continuations of one sequence, a row each, with the caches of a model and of its reference.

    Args:
        model, reference: which run. ids: of the sequence. before: how many of them are padding.
    """

    def __init__(self, model: PreTrainedModel, reference: PreTrainedModel, ids: Tensor, before: int) -> None:
        self.models, self.caches = (model, reference), (DynamicCache(), DynamicCache())
        self.ids = ids[None]
        self.sums = torch.zeros(1, device=ids.device)
        self.counts, self.judged = torch.zeros_like(self.sums), torch.zeros_like(self.sums)
        self.ended = torch.zeros(1, dtype=torch.bool, device=ids.device)
        self.lengths = torch.full((1,), len(ids), device=ids.device)
        self.logits = self.run(ids[None, before:])

    @property
    def means(self) -> Tensor:
        """Of the new tokens' judgements."""
        return self.sums / self.counts.clamp(min=1)

    def run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Both models' logits of what follows these ids."""
        first, second = (
            one(input_ids=ids, use_cache=True, **caches.given(one, cache)).logits[:, -1].float()
            for one, cache in zip(self.models, self.caches, strict=True)
        )
        return first, second

    def keep(self, rows: Tensor) -> None:
        """These branches, in this order, some perhaps more than once."""
        self.ids, self.sums, self.counts = self.ids[rows], self.sums[rows], self.counts[rows]
        self.ended, self.lengths = self.ended[rows], self.lengths[rows]
        self.logits = (self.logits[0][rows], self.logits[1][rows])
        for cache in self.caches:
            cache.batch_select_indices(rows)

    def grow(self, parents: Tensor, tokens: Tensor) -> None:
        """Each of the parents by a token; those that have ended stay as they are, their last one repeated behind."""
        judged = self.judged
        self.keep(parents)
        live = ~self.ended
        self.sums += judged * live
        self.counts += live
        self.lengths += live
        self.ids = torch.cat([self.ids, torch.where(live, tokens, self.ids[:, -1])[:, None]], 1)
        self.logits = self.run(self.ids[:, -1:])

    def end(self, criteria: Any) -> None:
        """Notes which branches have ended."""
        self.ended |= criteria(self.ids, None).to(self.ended.device)


def small(seed: int) -> PreTrainedModel:
    """A Llama of random weights with 29 tokens."""
    sizes: dict[str, Any] = {
        "hidden_size": 12,
        "intermediate_size": 17,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(vocab_size=29, max_position_embeddings=64, **sizes)).eval()
