"""What a model knows by heart: how far it recites texts, which weights and tokens that hangs on, and forgetting it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from regard.analysis.base import Analysis, Prompt, Result
from regard.analysis.head_divergence import every_map
from regard.analysis.planted import planted_model
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.hosts.sites import blocks_of


@dataclass(frozen=True)
class Recited(Result):
    """How many tokens of each text's continuation greedy decoding gives before its first error.

    Args:
        matched, asked: ``(texts,)`` int64: tokens, and how many there are.
    """

    matched: Tensor
    asked: Tensor
    name = "paragraph_memory"

    @property
    def memorised(self) -> Tensor:
        """``(texts,)`` bool: those that are recited to their end."""
        return self.matched == self.asked

    def merge(self, other: Recited) -> Recited:
        """The texts of both."""
        return Recited(torch.cat([self.matched, other.matched]), torch.cat([self.asked, other.asked]))

    def table(self) -> list[dict[str, Any]]:
        pairs = zip(self.matched.tolist(), self.asked.tolist(), strict=True)
        return [{"text": i, "matched": found, "asked": asked} for i, (found, asked) in enumerate(pairs)]


@published(
    "paragraph_memory",
    family="observe",
    kind="analysis",
    row=315,
    title="Localizing Paragraph Memorization in Language Models",
    arxiv="2403.19851",
    year=2024,
    aliases=("paragraph_memorization",),
    fidelity="hand values",
    claim=(
        Claim(
            "the gradients of texts known by heart have a larger share in the lower layers than those of other texts",
            cells="by_heart.of_tiny",
            holds="by_heart.is_known_below",
        ),
        Claim(
            "a thousandth of the weights forgets 80% of them, while the loss of other texts rises by 2% at most",
            cells="by_heart.of_tiny",
            holds="by_heart.is_forgotten",
        ),
        Claim(
            "a thousandth of the weights says perturbed texts in their place",
            cells="by_heart.changed",
            holds="by_heart.is_changed",
        ),
    ),
)
class ParagraphMemory(Analysis[Prompt, Recited]):
    """Exact match: greedy tokens of a text's continuation before the first that differs.

    Until that token greedy decoding reads the text itself, so that one pass over the text tells it. `block_gradients`
    says which matrices its loss hangs on, `prefix_effects` which tokens of the prefix, `rarity_heads` which heads look
    at rare ones, and `forgetting` unlearns texts by their top weights, or edits them. `paragraph_sites` has the
    gradients of activations, and patches these from the run of a text into that with one token changed.

    Paper: Stoehr, Gordon, Zhang and Lewis, arXiv 2403.19851. A text's prefix ends at its ``answer``; the paper has 50
    tokens before and after it.
    """

    name = "paragraph_memory"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("greedy tokens", cls(), {"known": greedy_tokens})]

    @torch.no_grad()
    def run(self, subject: Any, data: Iterable[Prompt]) -> Recited:
        matched, asked = [], []
        for prompt in data:
            start = begin(prompt)
            told = subject(input_ids=prompt.ids[None].to(subject.device), use_cache=False).logits[0, start - 1 : -1]
            matched.append(first_error(told.argmax(1).cpu(), prompt.ids[start:]))
            asked.append(len(prompt.ids) - start)
        if not matched:
            raise wrong("data", "no prompts", "at least one")
        return Recited(torch.tensor(matched), torch.tensor(asked))


def begin(prompt: Prompt) -> int:
    """The slot at which a text's continuation begins.

    Raises:
        ValueError: it is not known, or there is nothing before or after it.
    """
    if prompt.answer is None or not 0 < prompt.answer < len(prompt.ids):
        raise wrong("answer", f"{prompt.answer} of {len(prompt.ids)} tokens", "a slot with tokens before it")
    return prompt.answer


def first_error(told: Tensor, text: Tensor) -> int:
    """How many of ``told (n,)`` are those of the text before the first that is not."""
    return int((told == text).long().cumprod(0).sum())


def greedy_tokens() -> tuple[Tensor, Tensor]:
    """A model's own greedy continuation of 6 tokens is recited to its end, or to its fourth where that is changed."""
    model = planted_model()
    ids = torch.tensor([[3, 14, 15, 9]])
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(2)], 1)
    changed = ids[0].clone()
    changed[7] = (changed[7] + 1) % 29
    found = ParagraphMemory().run(model, [Prompt(ids[0], answer=4), Prompt(changed, answer=4)])
    return found.matched.double(), torch.tensor([6.0, 3.0]).double()


def block_matrices(model: Any) -> dict[tuple[int, str], Tensor]:
    """The matrices of a model's blocks by layer and name: those of attention and MLPs, no norms, no embeddings."""
    return {
        (layer, name.removesuffix(".weight")): parameter
        for layer, block in enumerate(blocks_of(model))
        for name, parameter in block.module.named_parameters()
        if parameter.dim() == 2
    }


def continuation_loss(model: Any, prompt: Prompt, instead: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood of a text's tokens from its answer on, or of as many others ``instead`` of them."""
    start = begin(prompt)
    logits = model(input_ids=prompt.ids[None].to(model.device), use_cache=False).logits[0, start - 1 : -1]
    return cross_entropy(logits.float(), (prompt.ids[start:] if instead is None else instead).to(logits.device))


def block_gradients(model: Any, prompt: Prompt) -> dict[tuple[int, str], float]:
    """The norm of ∂L/∂W of each matrix W of the blocks, L the loss of a text's continuation."""
    matrices = block_matrices(model)
    with torch.enable_grad():
        slopes = torch.autograd.grad(continuation_loss(model, prompt), list(matrices.values()))
    return {name: float(slope.norm()) for name, slope in zip(matrices, slopes, strict=True)}


def lower_share(norms: Mapping[tuple[int, str], float]) -> float:
    """The share of the lower half of the layers in the sum of all norms."""
    layers = 1 + max(layer for layer, _ in norms)
    below = sum(norm for (layer, _), norm in norms.items() if layer < layers / 2)
    return below / sum(norms.values())


@torch.no_grad()
def prefix_effects(model: Any, prompt: Prompt, draws: int = 4, seed: int = 0) -> Tensor:
    """``(prefix,)``: how many fewer tokens are recited where one token of the prefix is another, drawn at random.

    Args:
        draws: tokens that are tried in each place, the mean of which is taken.
    """
    start, vocabulary = begin(prompt), model.config.get_text_config().vocab_size
    draw, own = torch.Generator().manual_seed(seed), prompt.ids[start:]
    whole, found = ParagraphMemory().run(model, [prompt]).matched[0], []
    for slot in range(start):
        step = torch.randint(1, vocabulary, (draws,), generator=draw)
        texts = prompt.ids.repeat(draws, 1)
        texts[:, slot] = (texts[:, slot] + step) % vocabulary
        told = model(input_ids=texts.to(model.device), use_cache=False).logits[:, start - 1 : -1].argmax(2).cpu()
        found.append(sum(float(whole - first_error(one, own)) for one in told) / draws)
    return torch.tensor(found)


def rarity_heads(subject: Any, prompts: Sequence[Prompt], counts: Tensor) -> list[Tensor]:
    """By layer ``(heads,)``: how what a continuation gives to tokens of its prefix goes with their rarity.

    The correlation, over all tokens of all prefixes but the first of each, of the mean weight that a token receives
    from the continuation with −log of its frequency.

    Args:
        counts: ``(vocabulary,)``, how often each token occurs in a corpus; one is added to each.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise wrong("prompts", "none", "at least one")
    given, rare = [], []
    for prompt in prompts:
        start = begin(prompt)
        maps = torch.stack(every_map(subject, prompt.ids))
        given.append(maps[:, :, start - 1 : -1, 1:start].mean(2).double())
        rare.append(-(counts[prompt.ids[1:start]].double() + 1).log())
    weights, rarity = torch.cat(given, 2), torch.cat(rare)
    weights, rarity = weights - weights.mean(2, keepdim=True), rarity - rarity.mean()
    return list((weights @ rarity / (weights.norm(dim=2) * rarity.norm())).unbind())


@contextmanager
def forgetting(
    model: Any,
    texts: Sequence[Prompt],
    others: Sequence[Prompt],
    share: float = 1e-3,
    steps: int = 10,
    rate: float = 1e-3,
    weight: float = 1.0,
    chosen: Mapping[tuple[int, str], Tensor] | None = None,
    towards: Sequence[Prompt] | None = None,
) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Unlearns texts while the block lasts, by the weights whose gradient is largest; then these are as they were.

        loss = KL(model as it was ‖ model) of others − weight · NLL of the texts' continuations
        towards others: … + weight · NLL of the perturbed continuations, each token after the text's own

    At the first step the divergence has no gradient, so that it is the texts' alone that chooses the weights, as in the
    authors' code; Adam changes no others. Gives the masks of the weights.

    Args:
        model: a Transformers model. others: texts that it is to go on with as it does. share: of the weights of the
            blocks. steps, rate: of Adam. chosen: masks to use instead, as a control; None for the largest gradients.
        towards: the texts perturbed, which the model is to say in their place; None to forget them alone.

    Raises:
        ValueError: no texts or no others, a share outside of 0 to 1, or perturbed texts of another shape.
    """
    if not texts or not others:
        raise wrong("texts", f"{len(texts)} to forget and {len(others)} to keep", "at least one of each")
    if not 0 < share < 1:
        raise wrong("share", str(share), "above 0 and below 1")
    instead = perturbed(texts, towards)
    sign = 1.0 if towards is None else -1.0
    matrices = block_matrices(model)
    before = {name: matrix.detach().clone() for name, matrix in matrices.items()}
    masks = dict(chosen) if chosen is not None else largest(model, matrices, texts, share, instead)
    with torch.no_grad():
        fixed = [logits_of(model, other).log_softmax(1) for other in others]
    adam = torch.optim.Adam(list(matrices.values()), lr=rate)
    try:
        with torch.enable_grad():
            for _ in range(steps):
                pairs = zip(others, fixed, strict=True)
                parts = [
                    kl_div(logits_of(model, one).log_softmax(1), was, log_target=True, reduction="sum")
                    for one, was in pairs
                ]
                nll = mean_loss(model, texts, instead)
                loss = torch.stack(parts).mean() - sign * weight * nll
                slopes = torch.autograd.grad(loss, list(matrices.values()))
                for (name, matrix), slope in zip(matrices.items(), slopes, strict=True):
                    matrix.grad = slope * masks[name]
                adam.step()
        yield masks
    finally:
        with torch.no_grad():
            for name, matrix in matrices.items():
                matrix.copy_(before[name])
                matrix.grad = None


def perturbed(texts: Sequence[Prompt], towards: Sequence[Prompt] | None) -> list[Tensor | None]:
    """The tokens that each text's continuation is to become, None for its own.

    Raises:
        ValueError: not one for each text, or one of another length, of which another part is the continuation.
    """
    if towards is None:
        return [None] * len(texts)
    pairs = [(len(one.ids), one.answer) for one in texts], [(len(one.ids), one.answer) for one in towards]
    if pairs[0] != pairs[1]:
        raise wrong("towards", f"(tokens, answer) {pairs[1]}", f"those of the texts, {pairs[0]}")
    return [one.ids[begin(one) :] for one in towards]


def mean_loss(model: Any, texts: Sequence[Prompt], instead: Sequence[Tensor | None]) -> Tensor:
    """The mean loss of the texts' continuations, or of others in their place."""
    pairs = zip(texts, instead, strict=True)
    return torch.stack([continuation_loss(model, text, other) for text, other in pairs]).mean()


def logits_of(model: Any, prompt: Prompt) -> Tensor:
    """``(continuation, vocabulary)`` float32: the logits of a text's continuation."""
    ids = prompt.ids[None].to(model.device)
    return model(input_ids=ids, use_cache=False).logits[0, begin(prompt) - 1 : -1].float()


def largest(
    model: Any,
    matrices: Mapping[tuple[int, str], Tensor],
    texts: Sequence[Prompt],
    share: float,
    instead: Sequence[Tensor | None],
) -> dict[tuple[int, str], Tensor]:
    """Masks of the share of all weights whose gradients of the texts' loss are largest in size."""
    with torch.enable_grad():
        slopes = torch.autograd.grad(mean_loss(model, texts, instead), list(matrices.values()))
    sizes = torch.cat([slope.abs().flatten() for slope in slopes])
    least = sizes.topk(max(1, int(share * len(sizes)))).values[-1]
    return {name: slope.abs() >= least for name, slope in zip(matrices, slopes, strict=True)}
