"""Laws about what a call may contain: padding and packing, grouped heads, edges and bad input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, at_hand, repeat_heads
from regard.laws.mechanism.subject import (
    BATCH,
    SHORT,
    Broken,
    Inputs,
    Subject,
    Unclaimed,
    batch_of,
    real_rows,
    same,
)


def padding(subject: Subject) -> str:
    """What padding holds changes nothing; a padded batch equals its single sequences, a packed one its documents."""
    worst, mechanism = 0.0, subject.cast(torch.float64)
    for n in (SHORT, subject.long):
        for causal in subject.directions():
            for side in ("left", "right"):
                layout = Layout(causal=causal, key_mask=subject.padding(n, batch_of(n, n), side))
                worst = max(worst, padded(subject, mechanism, layout, n, f"causal={causal}, {side} padding, n={n}"))
            if subject.traits.packed:
                worst = max(worst, packed(subject, mechanism, causal, n))
    return f"{worst:.0e}"


def padded(subject: Subject, mechanism: Mechanism, layout: Layout, n: int, where: str) -> float:
    """The worst difference of a padded batch from its sequences alone, and from itself with other padding."""
    assert layout.key_mask is not None
    inputs, rubbish = subject.draw(n), subject.draw(n, seed=1)
    batch = inputs.q.shape[0]
    out, rows = subject.call(inputs, layout, mechanism), layout.key_mask.cpu()
    hidden = ~layout.key_mask

    def spoil(name: str, tensor: Tensor) -> Tensor:
        if name == "q" or subject.side(name) == "query":
            return tensor
        where_hidden = hidden[:, None, :].view(batch, 1, n, *[1] * (tensor.dim() - 3))
        scale = 1e3 if name in ("k", "v") else 1
        return torch.where(where_hidden, scale * rubbish.tensors[name], tensor)

    worst = same(subject.call(inputs.map(spoil), layout, mechanism), out, 1e-9, f"{where}: padding's contents", rows)
    for row in range(batch):
        real = layout.key_mask[row]
        alone = inputs.map(lambda _, tensor, row=row, real=real: tensor[row : row + 1, :, real])
        single = subject.call(alone, Layout(causal=layout.causal), mechanism)
        worst = max(worst, same(out[row : row + 1][:, :, real], single, 1e-9, f"{where}: sequence {row} alone"))
    return worst


def packed(subject: Subject, mechanism: Mechanism, causal: bool, n: int) -> float:
    """The worst difference of a packed batch from its documents alone."""
    inputs, segments = subject.draw(n), subject.documents(n, batch_of(n, n))
    out = subject.call(inputs, Layout(causal=causal, segments=segments), mechanism)
    worst = 0.0
    for row in range(len(segments)):
        for document in segments[row].unique():
            tokens = segments[row] == document
            alone = inputs.map(lambda _, tensor, row=row, tokens=tokens: tensor[row : row + 1, :, tokens])
            single = subject.call(alone, Layout(causal=causal), mechanism)
            where = f"causal={causal}, n={n}: document {int(document)} of sequence {row} alone"
            worst = max(worst, same(out[row : row + 1][:, :, tokens], single, 1e-9, where))
    return worst


def grouped(subject: Subject) -> str:
    """Fewer kv heads equal repeated keys and values, in forward and in extend."""
    heads = subject.example.heads
    if not subject.traits.grouped:
        raise Unclaimed("as many kv heads as heads")
    worst, mechanism = 0.0, subject.cast(torch.float64)
    for groups in [g for g in range(1, heads) if heads % g == 0]:
        for name, layout in subject.layouts(SHORT, SHORT):
            inputs = subject.draw(SHORT, kv_heads=groups)
            repeated = inputs.map(lambda name, tensor: spread(subject, name, tensor, heads))
            got, want = subject.call(inputs, layout, mechanism), subject.call(repeated, layout, mechanism)
            rows = None if layout.key_mask is None else layout.key_mask.cpu()
            worst = max(worst, same(got, want, 1e-9, f"{groups} of {heads} heads, {name}", rows))
    if heads == 1:
        raise Unclaimed("one head cannot be grouped")
    return f"{worst:.0e}"


def spread(subject: Subject, name: str, tensor: Tensor, heads: int) -> Tensor:
    """A per-kv-head tensor repeated to all heads; q and signals of other kinds as they are."""
    own = {"q": "heads", "k": "kv_heads", "v": "kv_heads"}.get(name) or subject.mechanism.signals[name].heads
    return repeat_heads(tensor, heads) if own == "kv_heads" else tensor


def edges(subject: Subject) -> str:
    """One token, no keys, all padding, odd strides: zeros or numbers, never NaN; bad input names its argument."""
    mechanism = subject.cast(torch.float64)
    for n, m in ((1, 1), (1, SHORT), (5, 2), (3, 0), (0, 3)):
        for name, layout in subject.layouts(n, m):
            blind(subject, mechanism, n, m, layout, f"{name}, n={n}, m={m}")
    for causal in subject.directions():
        layout = Layout(causal=causal, key_mask=torch.zeros(BATCH, SHORT, dtype=torch.bool, device=subject.device))
        blind(subject, mechanism, SHORT, SHORT, layout, f"causal={causal}, all padding")
        some = subject.padding(SHORT, BATCH, "left") & (torch.arange(BATCH, device=subject.device) != 1)[:, None]
        blind(
            subject, mechanism, SHORT, SHORT, Layout(causal=causal, key_mask=some), f"causal={causal}, one all padding"
        )
        strided(subject, mechanism, Layout(causal=causal))
    for name, layout in subject.layouts(SHORT, SHORT):
        loud(subject, mechanism, layout, name)
    refusals(subject, mechanism)
    return "zeros where nothing is seen; errors name the argument"


def blind(subject: Subject, mechanism: Mechanism, n: int, m: int, layout: Layout, where: str) -> None:
    """Broken unless unseeing rows and their gradients are zeros, all finite, and forward follows the definition."""
    inputs = subject.draw(n, m).map(lambda _, tensor: tensor.requires_grad_())
    out = subject.call(inputs, layout, mechanism)
    same(out, subject.define(inputs, layout, mechanism), 1e-9, where, real_rows(layout, n, m, BATCH))
    unseen = ~mechanism.support(n, m, layout, out.device).any(-1)
    if out.masked_fill(~unseen[..., None], 0).abs().sum() > 0:
        raise Broken(f"{where}: a query with nothing to attend to returns other than zeros")
    if not out.requires_grad:
        return
    leaves = list(inputs.tensors.values())
    nothing = unseen[..., None].expand_as(out).to(out.dtype)
    for gradient in torch.autograd.grad(out, leaves, nothing, allow_unused=True, retain_graph=True):
        if gradient is not None and gradient.count_nonzero():
            raise Broken(f"{where}: a query with nothing to attend to has a gradient")
    for gradient in torch.autograd.grad(out.sum(), leaves, allow_unused=True):
        if gradient is not None and not gradient.isfinite().all():
            raise Broken(f"{where}: a gradient is not finite")


def loud(subject: Subject, mechanism: Mechanism, layout: Layout, name: str) -> None:
    """Broken unless outputs and gradients are finite where hidden and seen products are far beyond what exp takes."""
    inputs = subject.draw(SHORT).map(lambda name, x: 300 * x if name in ("q", "k") else x)
    for what, run in (("forward", subject.call), ("weights", subject.define)):
        leaves = inputs.map(lambda _, x: x.detach().requires_grad_())
        out = run(leaves, layout, mechanism)
        found = torch.autograd.grad(out.sum(), list(leaves.tensors.values()), allow_unused=True)
        for label, x in zip(("output", *leaves.tensors), (out, *found), strict=True):
            if x is not None and not x.isfinite().all():
                raise Broken(f"{what}, {name}, large q and k: the {label if x is out else f'd {label}'} is not finite")


def strided(subject: Subject, mechanism: Mechanism, layout: Layout) -> None:
    """Broken if strides change the output or a gradient: of any axis of any input, or of the gradient that comes in.

    In each round every tensor is stored in another way than the one before it, and over the rounds in every way.
    """
    for n, rounds in ((SHORT, len(STORED)), (subject.middle, 1)):
        inputs, upstream = subject.draw(n), subject.draw(n, kv_heads=subject.example.heads, seed=1).v
        names = [*inputs.tensors, "upstream"]
        for turn in range(rounds):
            ways = {name: (turn + place) % len(STORED) for place, name in enumerate(names)}
            apart = inputs.map(lambda name, tensor, ways=ways: STORED[ways[name]](tensor))
            grad = STORED[ways["upstream"]](upstream)
            got = differentiated(subject, mechanism, layout, apart, grad)
            want = differentiated(subject, mechanism, layout, apart.map(lambda _, x: x.contiguous()), grad.contiguous())
            largest = max(x.abs().max().item() for x in want.values() if x.numel())
            least = 1e-6 if subject.device == "cpu" else 1e-4 * largest  # where sums have no order, zero is rounding
            for label, tensor in want.items():
                where = f"non-contiguous inputs, causal={layout.causal}, n={n}, round {turn}: {label}"
                same(got[label], tensor, 1e-9, where, least=least)


def innermost(x: Tensor, axis: int) -> Tensor:
    """``x`` with the elements of ``axis`` next to each other in memory."""
    return x.movedim(axis, -1).contiguous().movedim(-1, axis)


def expanded(x: Tensor, axis: int) -> Tensor:
    """The first part of ``x`` along ``axis`` in place of all, by a stride of zero."""
    return x.narrow(axis, 0, 1).expand_as(x)


STORED = (
    lambda x: innermost(x, 2),
    lambda x: innermost(x, 1),
    lambda x: innermost(x, 0),
    lambda x: expanded(x, 1),
    lambda x: expanded(x, 0),
)
"""Ways to store what stands in a tensor ``(batch, heads, tokens, …)``."""


def differentiated(subject: Subject, mechanism: Mechanism, layout: Layout, inputs: Inputs, upstream: Tensor) -> dict:
    """The output and the gradients of all inputs and parameters, by name, each input as it is stored."""
    leaves = inputs.map(lambda _, tensor: tensor.detach().requires_grad_())
    named = {**leaves.tensors, **dict(mechanism.named_parameters())}
    out = subject.call(leaves, layout, mechanism)
    found = torch.autograd.grad(out, list(named.values()), upstream, allow_unused=True)
    return {"out": out} | {
        f"d {name}": gradient for name, gradient in zip(named, found, strict=True) if gradient is not None
    }


def refusals(subject: Subject, mechanism: Mechanism) -> None:
    """Broken unless each kind of bad input raises an error that names the argument and says what is wanted."""
    good = subject.draw(SHORT)
    layout = Layout(causal=subject.directions()[0])
    wrong_dim, wrong_length = torch.nn.functional.pad(good.k, (0, 1)), torch.nn.functional.pad(good.v, (0, 0, 0, 1))
    flags = torch.ones(BATCH, SHORT + 1, dtype=torch.bool, device=subject.device)
    bad: list[tuple[str, Inputs, Layout]] = [
        ("q", replace(good, q=good.q[0]), layout),
        ("k", replace(good, k=wrong_dim), layout),
        ("k", replace(good, k=good.k.float()), layout),
        ("v", replace(good, v=wrong_length), layout),
        ("v", replace(good, v=good.v[:1]), layout),
        ("layout.key_mask", good, replace(layout, key_mask=flags)),
        ("layout.key_mask", good, replace(layout, key_mask=flags[:, 1:].long())),
        ("surplus", replace(good, signals=good.signals | {"surplus": good.q}), layout),
    ]
    bad += [
        (name, replace(good, signals={k: v for k, v in good.signals.items() if k != name}), layout)
        for name in good.signals
    ]
    if len(subject.directions()) == 1:
        bad.append(("layout.causal", good, replace(layout, causal=not layout.causal)))
    if not subject.traits.packed:
        bad.append(("layout.segments", good, replace(layout, segments=subject.documents(SHORT, BATCH))))
    mask = torch.ones(1, 1, SHORT, SHORT, dtype=torch.bool, device=subject.device)
    bad += [("layout.mask", good, replace(layout, mask=given)) for given in (mask[0], mask[..., 1:], mask.double())]
    if not subject.traits.masked:
        bad.append(("layout.mask", good, replace(layout, mask=mask)))
    added = mask.double()
    given = [added[0], added[..., 1:], added.long()]
    if at_hand(added):  # else nobody waits to read it
        given.append(added.masked_fill(mask, -torch.inf))
    bad += [("layout.bias", good, replace(layout, bias=given)) for given in given]
    if not subject.traits.biased:
        bad.append(("layout.bias", good, replace(layout, bias=added)))
    for name in ("attn_mask", "is_causal"):
        bad.append((name, replace(good, signals=good.signals | {name: mask}), layout))
    for argument, inputs, given in [*bad, ("layout", good, mask)]:
        try:
            subject.call(inputs, given, mechanism)  # pyright: ignore[reportArgumentType]
        except (ValueError, TypeError) as error:
            if argument not in str(error) or "want" not in str(error):
                raise Broken(f"bad {argument}: the message does not name it and what is wanted: {error}") from error
        else:
            raise Broken(f"bad {argument}: accepted without an error")
