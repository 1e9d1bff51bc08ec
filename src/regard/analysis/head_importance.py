"""What a loss owes to each head: by its gradient for all of them at once, by taking heads out for some."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.base import Analysis, Head, HeadScores, Prompt
from regard.analysis.head_gates import HeadGates
from regard.analysis.planted import model_sample, planted_model
from regard.analysis.sweep import by_layer, heads_of
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.frozen import frozen
from regard.core.kinds import Sample
from regard.edits.ablation import HeadAblation
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.probes.head_statistics import Moments


@published(
    "head_pruning",
    family="observe",
    kind="analysis",
    row=12,
    fidelity="hand values",
    title="Are Sixteen Heads Really Better than One?",
    arxiv="1905.10650",
    year=2019,
    claim=(
        Claim(
            "the fifth of heads of least importance costs a tenth of the loss at most",
            cells="heads.pruned",
            holds="heads.costs_little",
        ),
        Claim(
            "random fifths cost at least twice as much",
            cells="heads.pruned",
            holds="heads.random_costs_twice",
        ),
    ),
)
class HeadImportance(Analysis[Prompt, HeadScores]):
    """Expected sensitivity of the loss to each head's gate: I_h = mean_t |z_{h,t} · ∂L/∂z_{h,t}|.

    z_{h,t} is the head's output at token t, L the sum of the tokens' negative log-likelihoods; the absolute value is
    taken for each token, as in the authors' code. One backward pass gives all heads. `ordered` normalises each layer's
    scores to ℓ2 norm one, as the paper does, or leaves them as they are; heads are taken out from the least on, for
    good by `hosts.remove_heads`. What single heads are worth is told by `loss_rises` without each, and by `only_one`.

    Paper: Michel, Levy and Neubig, arXiv 1905.10650.
    """

    name = "importance"

    @classmethod
    def examples(cls) -> list[Sample]:
        texts = [Prompt(torch.randint(0, 29, (11 + i,), generator=torch.Generator().manual_seed(i))) for i in range(3)]
        return [model_sample(cls(), texts, "importance", known=gate_slope)]

    def run(self, subject: Any, data: Iterable[Prompt]) -> HeadScores:
        found: HeadScores | None = None
        for prompt in data:
            one = HeadScores(self.name, self.moments(subject, prompt.ids))
            found = one if found is None else found.merge(one)
        if found is None:
            raise wrong("data", "no prompts", "at least one")
        return found

    def moments(self, model: Any, ids: Tensor) -> dict[int, Moments]:
        """Counts and sums over the tokens of one text."""
        sums, count = {}, torch.tensor(float(len(ids)), dtype=torch.float64)
        for layer, dots in slopes(model, ids).items():
            each = dots.abs().double()
            sums[layer] = Moments(count, torch.full_like(count, math.inf), each.sum(1), each.square().sum(1))
        return sums


def slopes(model: Any, ids: Tensor) -> dict[int, Tensor]:
    """By layer ``(heads, n)``: z_{h,t} · ∂L/∂z_{h,t}, L the sum of the negative log-likelihoods of a text's tokens.

    Their sum over t, negated, is the change of L to first order where the head is taken out.
    """
    trace = Trace("z")
    with frozen(model.parameters()):
        start = model.get_input_embeddings()(ids[None].to(model.device)).detach().requires_grad_(True)
        with torch.enable_grad(), attach(model, edits=[trace]):
            logits = model(inputs_embeds=start, use_cache=False).logits[0]
            loss = cross_entropy(logits[:-1], ids[1:].to(logits.device), reduction="sum")
            layers = sorted(layer for _, layer in trace.kept)
            outputs = [trace.get("z", layer) for layer in layers]
            grads = torch.autograd.grad(loss, outputs)
    pairs = zip(layers, outputs, grads, strict=True)
    return {layer: (z.detach() * g).sum(3)[0].cpu() for layer, z, g in pairs}


def gate_slope() -> tuple[Tensor, Tensor]:
    """The slopes of a text's loss by the gates of all heads: from their outputs, and from gates that are there."""
    model, ids, gates = planted_model(), torch.arange(3, 20), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad(), attach(model, edits=[HeadGates(gates)]):
        loss = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    found = slopes(model, ids)
    return torch.stack([found[layer].sum(1) for layer in (0, 1)]), torch.autograd.grad(loss, gates)[0]


def ordered(scores: HeadScores, by_norm: bool = True) -> list[Head]:
    """Heads from the least important on; ``by_norm``: with every layer's scores at ℓ2 norm one."""
    values = {layer: row / row.norm() if by_norm else row for layer, row in scores.values.items()}
    every = [(float(x), layer, head) for layer, row in values.items() for head, x in enumerate(row)]
    return [(layer, head) for _, layer, head in sorted(every)]


@torch.no_grad()
def text_loss(model: Any, texts: Sequence[Tensor], without: Iterable[Head] = ()) -> Tensor:
    """``(texts,)`` float64: mean negative log-likelihood of a text's tokens after its first, some heads taken out."""
    heads, found = by_layer(without), []
    with attach(model, edits=[HeadAblation(heads)] if heads else []):
        for ids in texts:
            logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0, :-1]
            found.append(cross_entropy(logits.float(), ids[1:].to(logits.device)).double().cpu())
    return torch.stack(found)


def loss_rises(model: Any, texts: Sequence[Tensor], heads: Sequence[Head]) -> Mapping[Head, Tensor]:
    """For each head ``(texts,)``: by how much the loss of the texts rises where it is taken out, in nats a token."""
    whole = text_loss(model, texts)
    return {head: text_loss(model, texts, [head]) - whole for head in heads}


def only_one(model: Any, texts: Sequence[Tensor], layer: int) -> dict[int, Tensor]:
    """For each head of a layer ``(texts,)``: by how much the loss of the texts rises where it alone is left."""
    whole = text_loss(model, texts)
    every = [head for at, head in heads_of(model) if at == layer]
    return {kept: text_loss(model, texts, [(layer, h) for h in every if h != kept]) - whole for kept in every}
