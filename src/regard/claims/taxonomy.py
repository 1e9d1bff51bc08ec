"""Whether all mechanisms are tagged, and those that stand for a tag are lawful."""

from __future__ import annotations

import torch

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding
from regard.core.atlas import entries
from regard.core.layout import Layout
from regard.studies.attention_survey import TAXONOMY, having, tags_of

EVERY = tuple(f"{dimension}={tag}" for dimension, names in TAXONOMY.items() for tag in names)


@null(kind=["pattern"])
@measured(kind=["mechanism"])
def tagged(kind: str) -> dict[str, float]:
    """How many mechanisms there are, how many have four tags, how few have the rarest tag; null: other things."""
    known, found = entries(kind=kind), []
    for entry in known:
        if hasattr(entry.thing, "signals"):
            found.append(tags_of(entry))
    whole = [each for each in found if all(each[name] in names for name, names in TAXONOMY.items())]
    rarest = min(sum(each[name] == tag for each in whole) for name, names in TAXONOMY.items() for tag in names)
    return {"mechanisms": float(len(known)), "tagged": float(len(whole)), "rarest": float(rarest)}


def are_tagged(found: Figures) -> Finding:
    """All of them, and no tag is empty."""
    count, whole, rarest = (found.one(name) for name in ("mechanisms", "tagged", "rarest"))
    figure = f"{whole:.0f} of {count:.0f} mechanisms have four tags; the rarest tag has {rarest:.0f}"
    return Finding.of(figure, count > 0, whole == count, rarest >= 1)


@quick(tag=["sequences=self"])
@null(masked=[False])
@measured(tag=EVERY, masked=[True])
def lawful(tag: str, masked: bool) -> dict[str, float | str]:
    """Of the first mechanism with a tag: whether the output has its shape, how much of A lies on keys that are hidden,
    and whether the gradient reaches queries, keys and values. Null: nothing is hidden."""
    dimension, _, name = tag.partition("=")
    entry = next(iter(having(dimension, name)))
    (example, *_) = entry.thing.examples()
    made, n = example.mechanism.double(), 23
    torch.manual_seed(0)
    q = torch.randn(1, example.heads, n, example.head_dim, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, example.kv_heads, n, example.head_dim, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, example.kv_heads, n, example.value_dim, dtype=torch.float64, requires_grad=True)
    signals = {
        name: torch.full((1, example.heads, n, *spec.size(example.head_dim, example.value_dim)), middle(spec)).double()
        for name, spec in made.signals.items()
    }
    keys = torch.arange(n) < (n - 6 if masked else n)
    layout = Layout(causal=made.traits.causal, key_mask=keys[None])
    out = made(q, k, v, layout, **signals)
    out[:, :, : n - 6].square().sum().backward()
    shown = made.influence(q.detach(), k.detach(), v.detach(), layout, slice(0, n - 6), **signals)
    reached = [x.grad is not None and x.grad[:, :, : n - 6].any() for x in (q, k, v)]
    hidden = shown[..., n - 6 :].abs().max().item() if masked else 1.0
    return {
        "which": entry.name,
        "shape": float(out.shape == (1, example.heads, n, example.value_dim)),
        "hidden": hidden,
        "reached": float(sum(map(bool, reached))),
    }


def middle(spec) -> float:
    """A number in the range of a signal."""
    low = max(spec.low, -1.0)
    return (low + min(spec.high, low + 1.0)) / 2


def are_lawful(found: Figures) -> Finding:
    """All of them."""
    told = ", ".join(f"{tag} {which}" for tag, which in zip(found("tag"), found("which"), strict=True))
    shape, hidden, reached = (found(name) for name in ("shape", "hidden", "reached"))
    return Finding.of(told, min(shape) == 1, max(hidden) == 0, min(reached) == 3)
