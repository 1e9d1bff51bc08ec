"""Causal mediation of arithmetic: which attention and MLP outputs carry the result from one prompt into another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.patching import ids_of
from regard.analysis.sweep import Effects, Pair, Site, SiteEdit, Sweep, read
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.trace import Trace
from regard.hosts.attach import attach


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
    missing="mediation by single neurons, models before and after they are trained to calculate",
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
    ),
)
class ArithmeticMediation(Sweep):
    """Indirect effect of the output of one attention or MLP at one position on the result of a calculation.

        IE = ½ [ (P(r) − P*(r)) / P*(r) + (P*(r′) − P(r′)) / P(r′) ]

    r is the result of the base prompt, r′ that of the donor, whose operands differ; P are probabilities of the base
    run, P* those of the run in which one part has the donor's output. From −1 to any size, 0 for a part that says the
    same in both. Pairs have the metric `Results`.

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


def by_hand() -> tuple[Tensor, Tensor]:
    """P(r) from 0.8 to 0.4 and P(r′) from 0.1 to 0.3: (1 + 2) / 2; nothing moved: 0; all of r′ lost: (0.6 − 1) / 2."""
    base = torch.tensor([[0.8, 0.1], [0.8, 0.1], [0.8, 0.1]], dtype=torch.float64)
    patched = torch.tensor([[0.4, 0.3], [0.8, 0.1], [0.5, 0.0]], dtype=torch.float64)
    return indirect_effect(base, patched), torch.tensor([1.5, 0.0, -0.2], dtype=torch.float64)
