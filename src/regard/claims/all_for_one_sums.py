"""How late SmolLM2 may begin to mix the tokens of a sum, and in how few layers."""

from __future__ import annotations

from regard.analysis.all_for_one import AllForOne
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds import sums
from regard.claims.testbeds.key_values import smollm2

LEAST, MOST = 0.9, 0.2
"""Faithfulness of a subgraph that is enough, and of one that is not."""


@measured()
def of_smollm2() -> dict[str, float]:
    """The sparsest of subgraphs of SmolLM2's 30 layers that still adds, and the same without its transfer."""
    model, tokenizer = smollm2()
    found = AllForOne(range(16, 21), (0, 2, 4, 6, 8, 10)).run(model, sums.prompts(tokenizer))
    best = max(found.faithfulness(*span) for span in found.right)
    wait, transfer = found.sparsest(LEAST) or found.sparsest(best) or (0, 0)
    figures = {"wait": wait, "transfer": transfer, "faithfulness": found.faithfulness(wait, transfer)}
    without = found.faithfulness(wait, 0)
    return figures | {"without": without, "whole": float(found.whole.double().mean()), "layers": found.layers}


@measured()
def of_triples() -> dict[str, float]:
    """What is left of SmolLM2's sums of three with the sparsest subgraph that is enough for two, and without its
    transfer."""
    model, tokenizer = smollm2()
    two = AllForOne(range(16, 21), (4, 6, 8, 10)).run(model, sums.prompts(tokenizer))
    best = max(two.faithfulness(*span) for span in two.right)
    wait, transfer = two.sparsest(LEAST) or two.sparsest(best) or (0, 0)
    found = AllForOne([wait], (0, transfer)).run(model, sums.triples(tokenizer))
    figures = {"wait": wait, "transfer": transfer, "whole": float(found.whole.double().mean())}
    return figures | {"kept": found.faithfulness(wait, transfer), "without": found.faithfulness(wait, 0)}


def it_is_handed_on(found: Figures) -> Finding:
    """At least 0.8, and at most 0.2 without its layers of transfer, of a model that adds half of them or more."""
    whole, kept, without = (found.one(name) for name in ("whole", "kept", "without"))
    figure = (
        f"SmolLM2 adds three digits in {whole:.0%} of 84 prompts; the subgraph of two, {found.one('wait')} and "
        f"{found.one('transfer')} layers, keeps {kept:.0%} of that, {without:.0%} without its transfer"
    )
    return Finding.of(figure, whole >= 0.5, kept >= 0.8, without <= MOST)


def a_subgraph_is_enough(found: Figures) -> Finding:
    """Faithfulness from 0.9 on with at most a third of the layers to transfer in, after half of them."""
    wait, transfer, layers = (found.one(name) for name in ("wait", "transfer", "layers"))
    figure = (
        f"SmolLM2 adds digits in {found.one('whole'):.0%} of 36 prompts; waiting {wait:.0f} of {layers:.0f} layers and "
        f"transferring in {transfer:.0f} keeps {found.one('faithfulness'):.0%} of that"
    )
    enough = found.one("faithfulness") >= LEAST
    return Finding.of(figure, enough, wait >= layers / 2, transfer <= layers / 3)


def transfer_is_needed(found: Figures) -> Finding:
    """At most 0.2."""
    without = found.one("without")
    return Finding.of(f"without the layers of transfer {without:.0%} of the accuracy is left", without <= MOST)
