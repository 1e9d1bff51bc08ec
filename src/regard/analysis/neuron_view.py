"""The neuron view: how the weight of one pair comes about, coordinate by coordinate of its query and key."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Result
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by


@dataclass(frozen=True)
class Pair(Result):
    """What the score of one pair is made of.

    Args:
        products: ``s q_c k_c`` of each coordinate. score: their sum. weight: of the pair. query, key: q and k.
    """

    products: tuple[float, ...]
    score: float
    weight: float
    query: tuple[float, ...]
    key: tuple[float, ...]
    name = "neurons"

    def table(self) -> list[dict[str, Any]]:
        every = enumerate(zip(self.products, self.query, self.key, strict=True))
        return [{"coordinate": c, "product": x, "query": q, "key": k} for c, (x, q, k) in every]


@published(
    "neuron_view",
    family="observe",
    kind="analysis",
    row=258,
    title="A Multiscale Visualization of Attention in the Transformer Model",
    arxiv="1906.05714",
    year=2019,
    aliases=("bertviz",),
    fidelity="hand values",
    claim=Claim(
        "a page with every head of a text of 512 tokens takes a fiftieth of the bytes of the paper's tool",
        cells="parameters.page",
        holds="parameters.page_is_small",
    ),
)
@shown_by(lambda: [Sample("two coordinates", neurons, {"known": two_coordinates})])
def neurons(record: Any, layer: int, head: int, row: int, key: int) -> Pair:
    """The products of the coordinates of a query and a key, ``s q_c k_c``, whose sum is the pair's score.

    The views of heads and of the model are those of a record's page, which has this one of heads whose q and k it
    holds, and asks its server for it of all others.

    Args:
        record: one that kept its tensors.

    Raises:
        ValueError: no such layer, head or pair; a layer of another mechanism; a record that kept no tensors.

    Paper: Vig, arXiv 1906.05714.
    """
    weight = float(record.region(layer, head, slice(row, row + 1), slice(key, key + 1)))
    about = record.layer(layer)
    if f"{layer}/lse" not in record.tensors:
        raise wrong("layer", f"{layer}, of {about['mechanism']}", "a layer whose scores are products of q and k")
    q, k = (record.tensors[f"{layer}/{name}"] for name in ("q", "k"))
    query, answer = q[head, row].float(), k[head // (about["heads"] // about["kv_heads"]), key].float()
    products = about["scaling"] * query * answer
    return Pair(tuple(products.tolist()), float(products.sum()), weight, tuple(query.tolist()), tuple(answer.tolist()))


def two_coordinates() -> tuple[Tensor, Tensor]:
    """q = (2, −1) and k = (3, 4) scaled by a half: 3 and −2, the score 1."""
    tensors = {"0/q": torch.tensor([[[2.0, -1.0]]]), "0/k": torch.tensor([[[3.0, 4.0]]]), "0/lse": torch.zeros(1, 1)}
    about = {"heads": 1, "kv_heads": 1, "scaling": 0.5, "mechanism": "softmax"}
    record = SimpleNamespace(tensors=tensors, layer=lambda index: about, region=lambda *of: torch.tensor(0.25))
    found = neurons(record, 0, 0, 0, 0)
    return torch.tensor([*found.products, found.score, found.weight]), torch.tensor([3.0, -2.0, 1.0, 0.25])
