"""Whether all mechanisms are tagged, and those that stand for a tag are lawful."""

from __future__ import annotations

import torch

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding
from regard.core.atlas import Entry, entries
from regard.core.layout import Layout
from regard.studies.attention_survey import NETWORKS, TAXONOMY, having, tags_of

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
    every = [*whole, *NETWORKS.values()] if whole else []
    rarest = min(sum(each[name] == tag for each in every) for name, names in TAXONOMY.items() for tag in names)
    return {"mechanisms": float(len(known)), "tagged": float(len(whole)), "rarest": float(rarest)}


def are_tagged(found: Figures) -> Finding:
    """All of them, and no tag is empty."""
    count, whole, rarest = (found.one(name) for name in ("mechanisms", "tagged", "rarest"))
    figure = (
        f"{whole:.0f} of {count:.0f} mechanisms have four tags; the rarest tag has {rarest:.0f}, networks with them"
    )
    return Finding.of(figure, count > 0, whole == count, rarest >= 1)


@quick(tag=["sequences=self"])
@null(masked=[False])
@measured(tag=EVERY, masked=[True])
def lawful(tag: str, masked: bool) -> dict[str, float | str]:
    """Of the first mechanism with a tag: whether the output has its shape, how much of A lies on keys that are hidden,
    and whether the gradient reaches queries, keys and values, or `lawful_network`. Null: nothing is hidden."""
    dimension, _, name = tag.partition("=")
    entry = next(iter(having(dimension, name)))
    if entry.kind == "network":
        return lawful_network(entry, masked)
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


def lawful_network(entry: Entry, masked: bool) -> dict[str, float | str]:
    """The same of a network: its output's shape, how far a sequence is from what it is alone, gradients of weights."""
    (sample, *_) = entry.thing.examples()
    network, inputs = sample.thing.double(), sample.given["inputs"](3, 0)
    out, alone = network(*inputs), network(*(x[:1] for x in inputs))
    out.square().sum().backward()
    moved = (out[:1] - alone).abs().max().item()
    reached = all(x.grad is not None and x.grad.any() for x in network.parameters())
    return {
        "which": entry.name,
        "shape": float(out.shape[1:] == sample.given["output"]),
        "hidden": 1.0 if not masked else moved if moved > 1e-9 else 0.0,
        "reached": 3.0 * reached,
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
