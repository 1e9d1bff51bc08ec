"""The laws of projections: hidden states in, queries, keys and values out, and the same token by token.

A projection is examined as it is used, in a layer of softmax attention. What its examples are ``given``:

- ``equals``: the projection that computes the same: the plain one that it is at this limit, or another form of it;
- ``positions``: False if it does so without rotary positions alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.blocks.attention import Attention
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.laws.finding import Broken, Unclaimed, same, slopes_hold
from regard.mechanisms.scored.softmax import Softmax
from regard.projections.base import Projection
from regard.projections.rotary import Rotary

BATCH, N, M = 2, 19, 17
SEED = 20_261
WIDE = torch.float64


class Layered:
    """A projection under examination, in a layer of softmax attention in float64.

    Args:
        sample: the projection. device: where to examine it.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.device = device
        self.projection: Projection = copy.deepcopy(sample.thing).to(device, WIDE)
        other = sample.given.get("equals")
        self.equals: Projection | None = None if other is None else copy.deepcopy(other).to(device, WIDE)
        turned = min(p.turned for p in (self.projection, self.equals or self.projection))
        self.rotary = Rotary(turned) if turned and sample.given.get("positions", True) else None
        self.layer = self.layer_of(self.projection)

    def layer_of(self, projection: Projection) -> Attention:
        """Softmax attention with this projection, and rotary positions where all that is examined has them."""
        return Attention(Softmax(), projection, self.rotary)

    def hidden(self, n: int = N, seed: int = 0) -> Tensor:
        """``(b, n, width)`` of normal noise."""
        generator = torch.Generator().manual_seed(SEED + seed)
        return torch.randn(BATCH, n, self.projection.width, generator=generator, dtype=WIDE).to(self.device)

    def holes(self, n: int = N) -> Tensor:
        """``(b, n)`` bool with padding anywhere, a real token at the end."""
        keys = torch.rand(BATCH, n, generator=torch.Generator().manual_seed(SEED)) < 0.6
        keys[:, -1] = True
        return keys.to(self.device)

    def in_chunks(self, layer: Attention, x: Tensor, sizes: list[int], keys: Tensor | None = None):
        """``(output, state)`` of ``extend`` over consecutive chunks."""
        state, parts, start = layer.start(len(x), device=self.device, dtype=WIDE), [], 0
        for size in sizes:
            part = slice(start, start + size)
            out, state = layer.extend(x[:, part], state, None if keys is None else keys[:, part])
            parts.append(out)
            start += size
        return torch.cat(parts, 1), state

    def demand_causal(self) -> None:
        """Unclaimed unless a text with it can be continued."""
        if not self.projection.causal:
            raise Unclaimed("bidirectional, whole texts")

    @property
    def layouts(self) -> list[Layout]:
        """Those of whole texts that the projection takes."""
        return [Layout(), Layout(causal=True)] if self.projection.causal else [Layout()]


def shapes(subject: Layered) -> str:
    """Queries, keys, values and the output have the shapes that its sizes say, across sequences, in any dtype."""
    p, x, context = subject.projection, subject.hidden(), subject.hidden(M, seed=1)
    for dtype in (WIDE, torch.float32, torch.bfloat16):
        cast = copy.deepcopy(p).to(dtype)
        q, k, v = cast(x.to(dtype), context.to(dtype))
        wanted: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "q": (q, (BATCH, p.heads, N, p.head_dim)),
            "k": (k, (BATCH, p.kv_heads, M, p.head_dim)),
            "v": (v, (BATCH, p.kv_heads, M, p.value_dim)),
        }
        layer = subject.layer_of(cast)
        wanted["output"] = (layer(x.to(dtype), subject.layouts[-1]), (BATCH, N, p.width))
        for name, (got, shape) in wanted.items():
            if tuple(got.shape) != shape or got.dtype != dtype or not got.isfinite().all():
                raise Broken(f"{name}: {tuple(got.shape)} of {got.dtype}, want finite {shape} of {dtype}")
    if p.value_slice is not None and not torch.equal(p(x, x)[1][..., p.value_slice], p(x, x)[2]):
        raise Broken(f"value_slice: values are not the coordinates {p.value_slice} of the keys")
    return f"{p.heads} × {p.head_dim}, {p.kv_heads} × ({p.head_dim} + {p.value_dim})"


def limit(subject: Layered) -> str:
    """It computes what the projection that it equals does, gradients and decoding included."""
    if subject.equals is None:
        raise Unclaimed("equal to no other")
    x, worst, other = subject.hidden().requires_grad_(), 0.0, subject.layer_of(subject.equals)
    aim = torch.randn(BATCH, N, subject.projection.width, generator=torch.Generator().manual_seed(1), dtype=WIDE)
    for layout in subject.layouts:
        got, want = (layer(x, layout) for layer in (subject.layer, other))
        worst = max(worst, same(got, want, 1e-10, f"output, {layout}"))
        slopes = [torch.autograd.grad(out, x, aim.to(out))[0] for out in (got, want)]
        worst = max(worst, same(slopes[0], slopes[1], 1e-9, f"gradient, {layout}"))
    if subject.projection.causal:
        got, _ = subject.in_chunks(subject.layer, x.detach(), [11, 1, 7])
        worst = max(worst, same(got, other(x, Layout(causal=True)), 1e-9, "in chunks"))
    return f"{worst:.0e}"


def cache(subject: Layered) -> str:
    """Any split into chunks equals one call, padding in any of them; the cache holds as many numbers as it says."""
    subject.demand_causal()
    x, worst, p = subject.hidden(), 0.0, subject.projection
    for name, keys in (("no padding", None), ("padding anywhere", subject.holes())):
        rows = torch.ones(BATCH, N, dtype=torch.bool) if keys is None else keys.cpu()
        want = subject.layer(x, Layout(causal=True, key_mask=keys)).cpu()[rows]
        for sizes in ([1] * N, [11, 1, 7]):
            got, _ = subject.in_chunks(subject.layer, x, sizes, keys)
            worst = max(worst, same(got.cpu()[rows], want, 1e-9, f"{name}, chunks {sizes[:3]}"))
    _, state = subject.in_chunks(subject.layer, x, [N])
    numbers = state.bytes / (BATCH * N * x.element_size())
    set_apart = p.value_slice is not None and subject.layer.inside is None  # by positions, which turn keys alone
    told = p.cached_numbers + (p.kv_heads * p.value_dim if set_apart else 0)
    if numbers != told:
        raise Broken(f"the cache holds {numbers:g} numbers a token, cached_numbers says {told}")
    order, token = torch.tensor([1, 0], device=subject.device), subject.hidden(1, seed=2)
    want, _ = subject.layer.extend(token, state)
    got, _ = subject.layer.extend(token[order], state.select(order))
    same(got, want[order], 1e-9, "state.select")
    return f"{worst:.0e}, {p.cached_numbers} numbers a token"


def causal(subject: Layered) -> str:
    """Later tokens leave the rows of earlier ones as they are."""
    subject.demand_causal()
    x, fresh, layout, worst = subject.hidden(), subject.hidden(seed=1), Layout(causal=True), 0.0
    want = subject.layer(x, layout)
    for i in (1, 7, N - 1):
        got = subject.layer(torch.cat([x[:, :i], fresh[:, i:]], 1), layout)
        worst = max(worst, same(got[:, :i], want[:, :i], 1e-13, f"tokens from {i} on changed"))
    return f"{worst:.0e}"


def padding(subject: Layered) -> str:
    """What padding holds changes nothing; each sequence of a batch, and each packed document, is what it is alone."""
    subject.demand_causal()
    x, keys, worst = subject.hidden(), subject.holes(), 0.0
    borders = torch.arange(N, device=subject.device) >= 8
    for causal in (False, True):
        padded = Layout(causal=causal, key_mask=keys)
        got = subject.layer(x, padded)
        changed = subject.layer(torch.where(keys[..., None], x, subject.hidden(seed=1)), padded)
        worst = max(worst, same(changed[keys], got[keys], 1e-12, "other padding"))
        for row in range(BATCH):
            alone = subject.layer(x[row, keys[row]][None], Layout(causal=causal))[0]
            worst = max(worst, same(got[row, keys[row]], alone, 1e-9, f"sequence {row} alone"))
        packed = subject.layer(x, Layout(causal=causal, segments=borders.long().expand(BATCH, -1)))
        parts = [subject.layer(x[:, real], Layout(causal=causal)) for real in (~borders, borders)]
        worst = max(worst, same(packed, torch.cat(parts, 1), 1e-9, "packed documents"))
    return f"{worst:.0e}"


def parameters(subject: Layered) -> str:
    """Its formulas count its parameters, and the FLOPs of a layer as PyTorch's counter does."""
    p, held = subject.projection, sum(weight.numel() for weight in subject.projection.parameters())
    if p.parameter_count != held:
        raise Broken(f"parameter_count {p.parameter_count}, want {held}")
    n = getattr(p, "length", N)
    layout = subject.layouts[-1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.layer(subject.hidden(n), layout)
    told = subject.layer.cost(n, batch=BATCH, causal=layout.causal, itemsize=8).flops
    if subject.device == "cpu" and told != counter.get_total_flops():  # kernels for GPUs are not counted
        raise Broken(f"cost says {told} FLOPs, PyTorch counts {counter.get_total_flops()}")
    return f"{held} parameters, {p.flops} FLOPs a token"


def gradients(subject: Layered) -> str:
    """The gradient reaches every parameter, and that of the hidden states is the numerical one."""
    x, layout = subject.hidden(5), subject.layouts[-1]
    aim = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=WIDE).to(x)
    subject.layer(x, layout).backward(aim)
    for name, weight in subject.projection.named_parameters():
        if weight.grad is None or not weight.grad.isfinite().all() or not weight.grad.any():
            raise Broken(f"{name}: no gradient, or none that is finite and not zero")
    slopes_hold(lambda x: subject.layer(x, layout), [x.requires_grad_()])
    return f"of {sum(1 for _ in subject.projection.parameters())} tensors"


LAWS: dict[str, Callable[[Layered], str]] = {
    law.__name__: law for law in (shapes, limit, cache, causal, padding, parameters, gradients)
}
subject = Layered


def example(thing: Projection, **given: Any) -> Sample:
    """A projection as it is, ``given`` what is said in the head of this module."""
    return Sample(type(thing).__name__, thing, given)
