"""All for one: how late a model may begin to mix tokens, and in how few layers, to answer from its last token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, Prompt, Result
from regard.analysis.planted import planted_model
from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.trace import Trace
from regard.hosts.attach import attach

Span = tuple[int, int]
"""L_wait and L_transfer."""


class TokenMeans(Edit):
    """Context-aware mean ablation (CAMA): before a layer each state becomes the mean of its token's at its position.

    Args:
        layer: whose incoming states are replaced. means: ``(rows, n, channels)``, one for each state of the pass.
    """

    parts = ("resid",)
    resumable = False

    def __init__(self, layer: int, means: Tensor) -> None:
        super().__init__()
        self.layer, self.means = layer, means

    def hidden(self, x: Tensor, place: Place) -> Tensor | None:
        return self.means.to(x) if place.layer == self.layer else None


class Peeking(Edit):
    """Attention-based peeking (ABP): other tokens see themselves and the first one, and so does the last but for once.

    Args:
        start: layers from here on are restricted. transfer: how many of these the last token sees everything in.
    """

    resumable = False

    def __init__(self, start: int, transfer: int) -> None:
        super().__init__()
        self.start, self.transfer = start, transfer

    def scores(self, place: Place) -> Tensor | None:
        if place.layer < self.start:
            return None
        keys = place.start + torch.arange(place.m, device=place.rows.device)
        seen = (place.rows[:, None] == keys) | (keys == 0)
        if place.layer < self.start + self.transfer:
            seen = seen | (place.rows == place.rows.max())[:, None]
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -math.inf)


@dataclass(frozen=True)
class Subgraphs(Result):
    """Which prompts are answered right, by the model and by subgraphs of it.

    Args:
        whole: ``(prompts,)`` bool. right: the same by L_wait and L_transfer. layers: of the model.
    """

    whole: Tensor
    right: Mapping[Span, Tensor]
    layers: int
    name = "all_for_one"

    def merge(self, other: Subgraphs) -> Subgraphs:
        """The prompts of both; the means of each are those over its own.

        Raises:
            ValueError: other subgraphs.
        """
        if (self.layers, list(self.right)) != (other.layers, list(other.right)):
            raise wrong("other", f"subgraphs {list(other.right)}", f"the same as here, {list(self.right)}")
        right = {span: torch.cat([seen, other.right[span]]) for span, seen in self.right.items()}
        return Subgraphs(torch.cat([self.whole, other.whole]), right, self.layers)

    def faithfulness(self, wait: int, transfer: int) -> float:
        """The accuracy of a subgraph by that of the model; NaN where that answers nothing."""
        return float(self.right[wait, transfer].double().mean() / self.whole.double().mean())

    def sparsest(self, least: float = 0.9) -> Span | None:
        """The subgraph of at least this faithfulness that waits longest, then transfers in fewest layers."""
        enough = [span for span in self.right if self.faithfulness(*span) >= least]
        return max(enough, key=lambda span: (span[0], -span[1]), default=None)

    def handed_on(self, span: Span, layers: int) -> Span:
        """A subgraph of this model for one of another depth: it waits and transfers in the same shares of the layers.

        Raises:
            ValueError: a model without layers.
        """
        if layers < 1:
            raise wrong("layers", str(layers), "at least one")
        wait, transfer = (round(of * layers / self.layers) for of in span)
        wait = min(wait, layers - 1)
        return wait, min(max(transfer, int(span[1] > 0)), layers - wait)

    def table(self) -> list[dict[str, Any]]:
        accuracy = float(self.whole.double().mean())
        return [
            {"wait": wait, "transfer": transfer, "accuracy": float(seen.double().mean()), "whole": accuracy}
            | {"faithfulness": self.faithfulness(wait, transfer)}
            for (wait, transfer), seen in self.right.items()
        ]


@published(
    "all_for_one",
    family="observe",
    kind="analysis",
    row=288,
    title="All for One: LLMs Solve Mental Math at the Last Token With Information Transferred From Other Tokens",
    arxiv="2509.09650",
    year=2025,
    aliases=("cama", "attention_based_peeking"),
    fidelity="abstract only",
    claim=(
        Claim(
            "a subgraph that mixes tokens in a few late layers, at the last token alone, keeps 90% of the accuracy",
            cells="all_for_one_sums.of_smollm2",
            holds="all_for_one_sums.a_subgraph_is_enough",
        ),
        Claim(
            "without its layers of transfer at most a fifth of the accuracy is left",
            cells="all_for_one_sums.of_smollm2",
            holds="all_for_one_sums.transfer_is_needed",
        ),
        Claim(
            "the subgraph of two operands keeps 80% of the accuracy with three",
            cells="all_for_one_sums.of_triples",
            holds="all_for_one_sums.it_is_handed_on",
        ),
    ),
)
class AllForOne(Analysis[Prompt, Subgraphs]):
    """Faithfulness of subgraphs in which tokens wait, hand over to the last one, and leave the rest to that.

        x_t ← E[x_t | token t]  before layer L_wait                                  (CAMA)
        layers L_wait … L_wait + L_transfer − 1: token i sees i and 0, the last token all     (ABP)
        later layers: every token sees itself and token 0
        faithfulness = accuracy of the subgraph / accuracy of the model

    The expectation is over the prompts that have the same token at the same position. Token 0 stays in sight of all,
    so that it is not the missing attention sink that is measured. Any number of operands will do; a subgraph found in
    one model is tried in another by `Subgraphs.handed_on`.

    Paper: Mamidanna et al., arXiv 2509.09650, from whose abstract and summaries the three stages are.

    Args:
        waits: values of L_wait. transfers: values of L_transfer; 0 for none. rows: prompts in a batch.

    Raises:
        ValueError: no values, or negative ones; in a run, prompts of different lengths or without an answer, or a
            model that has too few layers.
    """

    name = "all_for_one"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("planted", cls([1], [1]), {"known": planted_transfer})]

    def __init__(self, waits: Iterable[int], transfers: Iterable[int], rows: int = 64) -> None:
        self.waits, self.transfers, self.rows = tuple(waits), tuple(transfers), rows
        for name, values in (("waits", self.waits), ("transfers", self.transfers)):
            if not values or min(values) < 0:
                raise wrong(name, f"{values}", "numbers of layers, at least one, none negative")
        if rows < 1:
            raise wrong("rows", str(rows), "at least one prompt in a batch")

    @torch.no_grad()
    def run(self, subject: Any, data: Iterable[Prompt]) -> Subgraphs:
        ids, answers = asked(list(data))
        layers = subject.config.get_text_config().num_hidden_layers
        if max(self.waits) >= layers:
            raise wrong("waits", f"{max(self.waits)} of {layers} layers", f"at most {layers - 1}")
        spans = [(w, t) for w in self.waits for t in self.transfers if w + t <= layers]
        whole, right = self.told(subject, ids, []) == answers, {}
        for wait in dict.fromkeys(w for w, _ in spans):
            means = token_means(subject, ids, wait, self.rows)
            for transfer in (t for w, t in spans if w == wait):
                edits = [(TokenMeans(wait, part), Peeking(wait, transfer)) for part in means.split(self.rows)]
                right[wait, transfer] = self.told(subject, ids, edits) == answers
        return Subgraphs(whole, right, layers)

    def told(self, model: Any, ids: Tensor, edits: Sequence[Sequence[Edit]]) -> Tensor:
        """``(prompts,)``: the likeliest next tokens, each batch under its edits."""
        found = []
        for index, part in enumerate(ids.split(self.rows)):
            with attach(model, edits=list(edits[index]) if edits else []):
                logits = model(input_ids=part.to(model.device), use_cache=False, logits_to_keep=1).logits
            found.append(logits[:, -1].argmax(1).cpu())
        return torch.cat(found)


def asked(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """``(prompts before their answers (b, n), first tokens of the answers (b,))``.

    Raises:
        ValueError: none, one without an answer, or of different lengths.
    """
    if not prompts:
        raise wrong("data", "no prompts", "at least one")
    if any(prompt.answer is None for prompt in prompts):
        raise wrong("data", "a prompt without an answer", "Prompt(ids, answer=slot) for all")
    lengths = {prompt.answer for prompt in prompts}
    if len(lengths) > 1:
        raise wrong("data", f"prompts of {sorted(lengths, key=str)} tokens", "prompts of one length")
    (n,) = lengths
    return torch.stack([p.ids[:n] for p in prompts]), torch.stack([p.ids[n or 0] for p in prompts])


@torch.no_grad()
def token_means(model: Any, ids: Tensor, layer: int, rows: int = 64) -> Tensor:
    """``(b, n, channels)``: the mean state that comes into a layer, over the texts with that token at that position."""
    states = []
    for part in ids.split(rows):
        trace = Trace("resid", layers=[layer])
        with attach(model, edits=[trace]):
            model(input_ids=part.to(model.device), use_cache=False)
        states.append(trace.get("resid", layer).cpu())
    return grouped_means(torch.cat(states), ids.cpu())


def grouped_means(x: Tensor, ids: Tensor) -> Tensor:
    """``(b, n, channels)``: the mean of ``x`` over the rows that have the same one of ``ids (b, n)`` in a column."""
    same = (ids[:, None] == ids).to(x.dtype)  # (b, b, n)
    return torch.einsum("bcn,cnd->bnd", same / same.sum(1, keepdim=True), x)


def planted_transfer() -> tuple[Tensor, Tensor]:
    """A model whose one head is in its layer 1 loses nothing by waiting one layer and transferring in one."""
    model = planted_model(((1, 0),))
    ids = torch.randint(0, 28, (31, 5), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 28
    with torch.no_grad():
        answers = model(input_ids=ids).logits[:, -1].argmax(1)
    prompts = [Prompt(torch.cat([row, answer[None]]), answer=5) for row, answer in zip(ids, answers, strict=True)]
    found = AllForOne([1], [1], rows=11).run(model, prompts)
    return torch.tensor([found.faithfulness(1, 1)]), torch.ones(1)
