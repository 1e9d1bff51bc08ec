"""Causal mediation of arithmetic: which attention and MLP outputs carry the result from one prompt into another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.patching import ids_of
from regard.analysis.route_neurons import down_of, matrix_of
from regard.analysis.sweep import Effects, Pair, Site, SiteEdit, Sweep, last_logits, prefix, read, repeated
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.hosts.sites import blocks_of


@dataclass(frozen=True)
class Results:
    """The metric of two tokens' probabilities, ``(b, 2)``: the result of the base prompt, and that of the donor."""

    base: int
    donor: int

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.double().softmax(1)[:, [self.base, self.donor]]


@published(
    "arithmetic_mediation",
    family="observe",
    kind="analysis",
    row=303,
    title="A Mechanistic Interpretation of Arithmetic Reasoning in Language Models using Causal Mediation Analysis",
    arxiv="2305.15054",
    year=2023,
    fidelity="hand values",
    claim=(
        Claim(
            "a late MLP carries sums at the last token, five times the median part or more",
            cells="mediation.of_sums",
            holds="mediation.a_late_network_carries",
        ),
        Claim(
            "an early MLP carries sums at the operands, five times the median part or more",
            cells="mediation.of_sums",
            holds="mediation.early_networks_carry",
        ),
        Claim(
            "with all parts of the donor in their places the model gives the donor's result",
            cells="mediation.of_sums",
            holds="mediation.all_parts_carry",
        ),
        Claim(
            "late MLPs at the last token matter more for sums than for numbers that are only looked up",
            cells="mediation.of_sums",
            holds="mediation.looking_up_is_elsewhere",
        ),
        Claim(
            "of the neurons of a late MLP one in twenty has half of all their effects",
            cells="mediation.of_neurons",
            holds="mediation.few_neurons_carry",
        ),
        Claim(
            "late MLPs at the last token have a larger share of the effects after a model is trained to calculate",
            cells="mediation.of_training",
            holds="mediation.training_moves_it_late",
        ),
    ),
)
class ArithmeticMediation(Sweep):
    """Indirect effect of the output of one attention or MLP at one position on the result of a calculation.

        IE = ½ [ (P(r) − P*(r)) / P*(r) + (P*(r′) − P(r′)) / P(r′) ]

    r is the result of the base prompt, r′ that of the donor, whose operands differ; P are probabilities of the base
    run, P* those of the run in which one part has the donor's output. From −1 to any size, 0 for a part that says the
    same in both. Pairs have the metric `Results`. `neuron_effects` mediates by single neurons of a network.

    Paper: Stolfo, Belinkov and Sachan, arXiv 2305.15054; the two denominators as in the authors' code.

    Args:
        parts: ``attn``, ``mlp`` or both. slots: positions, -1 for the last. rows: interventions in a batch.

    Raises:
        ValueError: other parts, or no positions.
    """

    name = "arithmetic_mediation"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("by hand", cls(), {"known": by_hand})]

    def __init__(self, parts: Sequence[str] = ("attn", "mlp"), slots: Sequence[int] = (-1,), rows: int = 32) -> None:
        super().__init__(rows)
        if not parts or not set(parts) <= {"attn", "mlp"}:
            raise wrong("parts", f"{tuple(parts)}", "attn, mlp or both")
        if not slots:
            raise wrong("slots", "none", "at least one position")
        self.parts, self.slots = tuple(parts), tuple(slots)

    def sites(self, model: Any) -> list[Site]:
        layers = range(model.config.get_text_config().num_hidden_layers)
        every = [(slot, layer, part) for slot in self.slots for layer in layers for part in self.parts]
        return [Site(layer, part, None, slot) for slot, layer, part in every]  # pyright: ignore[reportArgumentType]

    def effect(self, patched: Tensor, base: Tensor, donor: Tensor) -> Tensor:
        return indirect_effect(base, patched)


def indirect_effect(base: Tensor, patched: Tensor) -> Tensor:
    """IE of probabilities of r and r′, ``(…, 2)``: in the base run, and with a part of the donor's."""
    lost = (base[..., 0] - patched[..., 0]) / patched[..., 0]
    gained = (patched[..., 1] - base[..., 1]) / base[..., 1]
    return (lost + gained) / 2


def relative_importance(effects: Effects, chosen: Callable[[Site], bool]) -> float:
    """The share of some sites in all effects: Σ log(IE + 1) over them by that over all, of mean effects ≥ 0."""
    logs = effects.mean.clamp(min=0).log1p()
    return float(logs[[chosen(site) for site in effects.sites]].sum() / logs.sum())


def arithmetic_pair(
    tokenizer: Any, base: str | Sequence[int], donor: str | Sequence[int], result: str, other: str
) -> Pair:
    """Two prompts that differ in their operands, with their results, of which each is one token.

    Raises:
        ValueError: a result of several tokens, the same one for both, or prompts of different lengths.
    """
    tokens = [ids_of(tokenizer, word, special=False).tolist() for word in (result, other)]
    for word, found in zip((result, other), tokens, strict=True):
        if len(found) > 1:
            raise wrong("result", f"{word!r}, of {len(found)} tokens", "one token")
    if tokens[0] == tokens[1]:
        raise wrong("other", f"{other!r}, the base prompt's own result", "another result")
    return Pair(ids_of(tokenizer, base), ids_of(tokenizer, donor), Results(tokens[0][0], tokens[1][0]))


@torch.no_grad()
def all_patched(model: Any, pairs: Sequence[Pair]) -> Tensor:
    """``(pairs, 2)``: probabilities of r and r′ where every attention and MLP has the donor's output everywhere.

    Only the embeddings are still those of the base prompt.

    Raises:
        ValueError: no pairs.
    """
    if not pairs:
        raise wrong("pairs", "none", "at least one")
    layers, found = range(model.config.get_text_config().num_hidden_layers), []
    group = [Site(layer, part, None, None) for layer in layers for part in ("attn", "mlp")]
    for pair in pairs:
        donor = Trace("attn", "mlp")
        with attach(model, edits=[donor]):
            model(input_ids=pair.donor[None].to(model.device), use_cache=False)
        with attach(model, edits=[SiteEdit([group], lambda row, site, x, of=donor: read(of, site))]):
            logits = model(input_ids=pair.base[None].to(model.device), use_cache=False).logits[:, -1]
        found.append(pair.metric(logits).double().cpu())
    return torch.cat(found)


@torch.no_grad()
def neuron_effects(model: Any, pairs: Sequence[Pair], layer: int, slot: int = -1, rows: int = 64) -> Tensor:
    """``(pairs, neurons)`` float64: the indirect effect of each neuron of one network at one position.

        mlp ← mlp + (a′_k − a_k) W_k,   a of the base run, a′ of the donor's

    a_k is what comes out of neuron k, gated where the network is, W_k its row of the output matrix.

    Args:
        model: a Transformers model whose network ends in one linear layer. pairs: as for `ArithmeticMediation`.
        slot: the position, -1 for the last, behind whose prefix a cache is read. rows: interventions in a batch.

    Raises:
        ValueError: no pairs, no such layer, or a network that ends otherwise.
    """
    blocks = list(blocks_of(model))
    if not pairs or not 0 <= layer < len(blocks):
        raise wrong("pairs, layer", f"{len(pairs)} pairs, layer {layer}", f"pairs, and a layer below {len(blocks)}")
    down, found = down_of(blocks[layer]), []
    weight, _ = matrix_of(down)
    for pair in pairs:
        at = slot if slot < 0 else slot - len(pair.base)
        told = [activations(model, down, ids, at) for ids in (pair.base, pair.donor)]
        moved = (told[1] - told[0])[:, None] * weight
        short = at == -1 and len(pair.base) > 1
        cache = prefix(model, pair.base[None, :-1]) if short else None
        ids, ends = pair.base[-1:] if short else pair.base, []
        base = pair.metric(last_logits(model, pair.base[None])).double()
        for some in moved.split(rows):
            sites = [[Site(layer, "mlp", None, at)] for _ in some]
            own = None if cache is None else repeated(cache, len(some))
            with attach(model, edits=[SiteEdit(sites, lambda row, site, x, of=some: x + of[row])]):
                ends.append(pair.metric(last_logits(model, ids.expand(len(some), -1), own)).double())
        found.append(indirect_effect(base, torch.cat(ends)))
    return torch.stack(found)


def activations(model: Any, down: Any, ids: Tensor, at: int) -> Tensor:
    """``(neurons,)``: what a network's last matrix is given at one position of a text."""
    kept: list[Tensor] = []
    handle = down.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0][0, at]))
    try:
        model(input_ids=ids[None].to(model.device), use_cache=False)
    finally:
        handle.remove()
    return kept[0]


def by_hand() -> tuple[Tensor, Tensor]:
    """P(r) from 0.8 to 0.4 and P(r′) from 0.1 to 0.3: (1 + 2) / 2; nothing moved: 0; all of r′ lost: (0.6 − 1) / 2."""
    base = torch.tensor([[0.8, 0.1], [0.8, 0.1], [0.8, 0.1]], dtype=torch.float64)
    patched = torch.tensor([[0.4, 0.3], [0.8, 0.1], [0.5, 0.0]], dtype=torch.float64)
    return indirect_effect(base, patched), torch.tensor([1.5, 0.0, -0.2], dtype=torch.float64)
