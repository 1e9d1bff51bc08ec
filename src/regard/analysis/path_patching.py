"""Path patching: what a head says to the output directly, and circuits of heads that carry a task by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head
from regard.analysis.planted import model_sample
from regard.analysis.sweep import Effects, LogitDifference, Pair, Site, SiteEdit, Sweep, heads_of, read
from regard.core.atlas import Claim, published
from regard.core.edit import Edit
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.trace import Trace
from regard.hosts.attach import attach


@published(
    "circuit_reuse",
    family="observe",
    kind="analysis",
    row=29,
    title="Circuit Component Reuse Across Tasks in Transformer Language Models",
    arxiv="2310.08744",
    year=2023,
    aliases=("path_patching",),
    fidelity="authors' code",
    claim=(
        Claim(
            "a quarter of the heads carries indirect object identification by itself",
            cells="heads.of_task(task='indirect object')",
            holds="heads.a_quarter_carries",
        ),
        Claim(
            "a quarter of the heads carries coloured objects by itself",
            cells="heads.of_task(task='coloured objects')",
            holds="heads.a_quarter_carries",
        ),
        Claim(
            "the two tasks share their heads",
            cells="heads.carried",
            holds="heads.heads_are_shared",
        ),
        Claim(
            "stage by stage the two tasks share in SmolLM2 three quarters of the smaller circuit",
            cells="reused.roles",
            holds="reused.most_are_shared",
        ),
        Claim(
            "inhibition heads and a negative mover of one task mend the other, told to look at its wrong answers",
            cells="reused.mended",
            holds="reused.is_mended",
        ),
    ),
)
class PathPatching(Sweep):
    """Effect of each head on the output by the path that leads through no other head.

        effect = (m(patched) − m(base)) / (m(donor) − m(base))

    In the patched run the head has the donor's output at the last position, and all heads of later layers keep theirs
    of the base run; MLPs are computed anew. Paths into other heads' queries, keys and values: `head_paths`; the roles
    of a circuit's heads: `circuit_roles`; the edit that mends the weaker task: `edits.AttendTo`.

    Paper: Wang et al., arXiv 2211.00593; Merullo et al., arXiv 2310.08744, whose code patches the last position alone
    and freezes no MLP.
    """

    name = "path_patching"

    @classmethod
    def examples(cls) -> list[Sample]:
        draw = torch.Generator().manual_seed(4)
        metric = LogitDifference(3, 8)
        texts = [torch.randint(0, 29, (2, 9), generator=draw) for _ in range(2)]
        pairs = [Pair(text[0], text[1], metric) for text in texts]
        return [model_sample(cls(), pairs, "effect")]

    def sites(self, model: Any) -> list[Site]:
        return [Site(layer, "z", head) for layer, head in heads_of(model)]

    def edit(self, sites: Sequence[Sequence[Site]], donor: Trace, base: Trace) -> Edit:
        every = {(at, h) for kind, at in base.kept if kind == "z" for h in range(base.get("z", at).shape[1])}
        rows = [[*some, *(Site(at, "z", h) for at, h in sorted(every) if at > some[0].layer)] for some in sites]
        sent = [set(some) for some in sites]

        def change(row: int, site: Site, x: Tensor) -> Tensor:
            return read(donor if site in sent[row] else base, site)

        return SiteEdit(rows, change)


def circuit(effects: Effects, count: int) -> list[Head]:
    """The ``count`` heads whose mean effects are largest, of either sign."""
    order = effects.mean.abs().argsort(descending=True, stable=True)[:count].tolist()
    return [(effects.sites[i].layer, effects.sites[i].head or 0) for i in order]


@torch.no_grad()
def kept_by(model: Any, pairs: Sequence[Pair], heads: Sequence[Head]) -> Tensor:
    """``(pairs,)``: the share of the metric's difference that is left where all other heads have the donor's outputs.

        (m(only the circuit) − m(donor)) / (m(base) − m(donor)), every position of every other head replaced

    Raises:
        ValueError: no pairs.
    """
    others = [Site(layer, "z", h, None) for layer, h in heads_of(model) if (layer, h) not in set(heads)]
    if not pairs:
        raise wrong("pairs", "none", "at least one")
    found = []
    for pair in pairs:
        donor, ends = Trace("z"), []
        for ids, edits in ((pair.donor, [donor]), (pair.base, [])):
            with attach(model, edits=edits):
                ends.append(pair.metric(model(input_ids=ids[None], use_cache=False).logits[:, -1]).double())
        with attach(model, edits=[SiteEdit([others], lambda row, site, x, of=donor: read(of, site))]):
            left = pair.metric(model(input_ids=pair.base[None], use_cache=False).logits[:, -1]).double()
        found.append((left - ends[0]) / (ends[1] - ends[0]))
    return torch.cat(found)
