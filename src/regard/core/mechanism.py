"""The contract: a mechanism defines A in ``out = A(q, k) v``, computes it fast, and continues it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.core.arguments import Configured
from regard.core.cost import Cost, Shape
from regard.core.deprecated import renamed_argument, renamed_field, warn
from regard.core.errors import wrong
from regard.core.layer import Activation, Rank
from regard.core.layer import LayerSpec as LayerSpec
from regard.core.layout import Layout
from regard.core.state import State

Growth = Literal["constant", "linear", "loglinear", "subquadratic", "quadratic"]
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("attn_mask", "attention_mask", "mask", "key_padding_mask", "padding_mask"), "mask"),
    **dict.fromkeys(("is_causal", "causal"), "layout=Layout(causal=True)"),
    **dict.fromkeys(("bias", "attn_bias", "score_mod"), "bias"),
    **dict.fromkeys(("segment_ids", "segments", "cu_seqlens"), "layout=Layout(segments=…)"),
    **dict.fromkeys(("scale", "softmax_scale", "sm_scale"), "the constructor's scale, where it has one"),
    **dict.fromkeys(("dropout_p", "dropout"), "torch.nn.functional.dropout of what comes out: A has none"),
    "enable_gqa": "k and v of fewer heads as they are: they are grouped by themselves",
    "block_mask": "a pattern, `build('pattern', of='Window(64) | Sinks(4)')`, or layout=Layout(mask=…)",
}
"""What other libraries call their arguments, and what stands for them here; of masks and biases see `instead`."""
GROWTHS: Mapping[str, float] = {"constant": 0.0, "linear": 1.0, "loglinear": 1.1, "subquadratic": 1.5, "quadratic": 2.0}
"""The exponent of n that each stands for; n log n is near n^1.1 at the lengths in use, "subquadratic" is n √n."""


ROUNDED = 2**-8
"""The largest relative error of rounding to bfloat16."""


@dataclass(frozen=True)
class Signal:
    """A per-token input beside q, k and v (decay, beta, gate …), which the hosting block projects.

    Args:
        meaning: one sentence. side: whose tokens it belongs to. heads: whether per query head, per kv head or shared.
        dim: size of its last axis, "key" for that of k, "value" for that of v, None for a scalar. low, high: its range.
        start: its value in an untrained block, two for a geometric range over its heads, or over the channels of each;
            None for the middle that the block's activation has at zero. steady: then for every token alike.
        hard: it acts through a threshold, and its gradient is a straight-through estimate.
        rank, inner: of the map that makes it of hidden states, ``inner(x W₁) W₂ + b``; None for ``x W + b``.
        form: of its distance from its upper bound, or from the lower one where that is all, times ``scale``; None for
            "softplus", or between two bounds a sigmoid over all of the range; "grown" for exp(a_h softplus(·)), which
            has the rate. rate: a learned factor besides, exp(a_h) for each head, or the a_h of "grown", zero at first.
            of: "key" for the key itself, times a learned number for each channel; "value" for a map of the values of
            all kv heads instead of the hidden state.
    """

    meaning: str
    side: Literal["query", "key"] = "key"
    heads: Literal["heads", "kv_heads", "shared"] = "heads"
    dim: int | Literal["key", "value"] | None = None
    low: float = -torch.inf
    high: float = torch.inf
    start: float | tuple[float, float] | None = None
    steady: bool = False
    hard: bool = False
    rank: Rank | None = None
    inner: Activation | None = None
    form: Literal["softplus", "exp", "sigmoid", "grown"] | None = None
    scale: float = 1.0
    rate: bool = False
    of: Literal["hidden", "key", "value"] = "hidden"

    def rows(self, heads: int, kv_heads: int) -> int:
        """How many heads it has in a call of so many."""
        return {"heads": heads, "kv_heads": kv_heads, "shared": 1}[self.heads]

    def size(self, head_dim: int, value_dim: int) -> tuple[int, ...]:
        """The shape that follows its tokens: empty for a scalar."""
        if self.dim is None:
            return ()
        return ({"key": head_dim, "value": value_dim}[self.dim] if isinstance(self.dim, str) else self.dim,)

    @property
    def ends(self) -> tuple[float, float]:
        """The range, wider by what rounding to half precision may add."""
        return self.low - ROUNDED * abs(self.low), self.high + ROUNDED * abs(self.high)

    def within(self, noise: Tensor) -> Tensor:
        """Normal ``noise`` moved into the range."""
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        if low.isfinite() and high.isfinite():
            return low + (high - low) * torch.sigmoid(noise)
        if low.isfinite():
            return low + nn.functional.softplus(noise)
        return high - nn.functional.softplus(noise) if high.isfinite() else noise

    def check(self, name: str, x: Tensor) -> None:
        """Raises an error that names the signal if any of ``x``, padding included, is NaN or out of the range.

        Only numbers that are at hand are looked at; see `guarded` for others.
        """
        if not at_hand(x) or x.numel() == 0:
            return
        (least, most), (low, high) = (end.item() for end in x.detach().aminmax()), self.ends
        if not (least >= low and most <= high):
            came = "NaN" if math.isnan(least) else f"numbers from {least:.6g} to {most:.6g}"
            raise wrong(name, came, f"{self.low:g} to {self.high:g}: {self.meaning}")

    def guarded(self, x: Tensor) -> Tensor:
        """NaN where ``x`` is out of the range and `check` has not looked, so that what follows is visibly wrong.

        To look would wait for a GPU, and break the graph of a compiler.
        """
        if at_hand(x):
            return x
        low, high = self.ends
        return torch.where((x >= low) & (x <= high), x, torch.nan)


@renamed_field("two_sided", "bidirectional")
@dataclass(frozen=True)
class Traits:
    """What a mechanism claims; the laws hold it to every word.

    Args:
        causal: accepts ``Layout(causal=True)`` and can be extended. resumable: extending by any chunks equals one call.
        bidirectional: accepts ``Layout(causal=False)``.
        cross: accepts n ≠ m when bidirectional. suffix: accepts n < m when causal, as the last queries of a whole call:
            no row reads an earlier query.
        leaks: a causal row may read later tokens in choosing which keys it attends to, though it attends to none of
            them; a network that is trained with it may learn from them what it will not have when it generates.
        grouped: accepts fewer kv heads than heads.
        packed: accepts ``Layout.segments``.
        masked: accepts ``Layout.mask``. biased: accepts ``Layout.bias``.
        rows: what the entries of each row of A sum to: "one", "at most one", or None for no claim.
        sign: the sign of A's entries, or None for no claim.
        time, state: growth of time and of the decoding state with the length. flops: whether `Cost.flops` is what is
            computed or, where the data decide, the most.
        linear: the output is one A for all channels times v, and A does not depend on v; else `define` and `influence`
            take the place of ``weights`` and ``rows``. content: it depends on q and k, and not on positions alone.
        equivariant: bidirectional and unpadded, permuting keys changes nothing, permuting queries permutes the rows.
    """

    causal: bool = True
    resumable: bool = True
    bidirectional: bool = True
    cross: bool = True
    suffix: bool = True
    leaks: bool = False
    grouped: bool = True
    packed: bool = True
    masked: bool = False
    biased: bool = False
    rows: Literal["one", "at most one"] | None = None
    sign: Literal["nonnegative"] | None = None
    time: Growth = "quadratic"
    state: Growth = "linear"
    flops: Literal["exact", "at most"] = "exact"
    linear: bool = True
    content: bool = True
    equivariant: bool = False


@dataclass(frozen=True)
class Example:
    """A small instance for the laws: a mechanism, what it is called in the report, and the sizes of its calls.

    Args:
        head_dim, value_dim: d and e, two odd primes where the mechanism has no say in them. longest: tokens of the
            longest calls, fewer where the definition goes token by token.
    """

    label: str
    mechanism: Mechanism
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 5
    value_dim: int = 7
    longest: int = 563


class Mechanism(Configured):
    """The base of every attention mechanism.

    A subclass writes ``weights`` (the definition), ``forward`` (the same, fast), ``start`` and ``extend`` (the same,
    continued), ``cost`` and ``examples``; one that is not linear in v writes `define` in the place of ``weights``.
    Shapes throughout: ``q (batch, heads, n, d)``, ``k (batch, kv_heads, m, d)``, ``v (batch, kv_heads, m, e)``;
    ``kv_heads`` divides ``heads``. What a subclass writes as ``weights``, ``rows`` and ``define`` is given half
    precision as float32, and its result rounded: products before the scale do not fit into float16.
    """

    signals: Mapping[str, Signal] = MappingProxyType({})  # of the class; an instance that wraps another takes its own
    traits: Traits = Traits()  # of the class; an instance narrows them where its configuration does
    layer: LayerSpec = LayerSpec()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in {"weights", "rows", "define"} & vars(cls).keys():
            setattr(cls, name, in_wide(vars(cls)[name]))
        if "extend" in vars(cls):
            cls.extend = renamed_argument("keys", "key_mask")(vars(cls)["extend"])
        if isinstance(vars(cls).get("host"), LayerSpec):
            warn(f"{cls.__name__}.host", "layer")
            cls.layer = vars(cls)["host"]

    def extra_repr(self) -> str:
        """The constructor's arguments as they were given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        """A, dense: ``(batch, heads, n, m)``. The equation of the paper, differentiable, in q's dtype.

        Raises:
            TypeError: there is no A, as the output is not linear in v; see `influence`.
        """
        if not self.traits.linear:
            name = type(self).__name__
            raise wrong("weights", f"{name}, which is not linear in v", "influence(q, k, v, …): |∂o_i/∂v_j|", TypeError)
        raise NotImplementedError

    def define(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        """What ``forward`` is held to, ``(batch, heads, n, e)``: ``weights`` times v, or the equation that is not
        so."""
        return self.weights(q, k, layout, **signals) @ repeat_heads(v, q.shape[1])

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        """``A v``: ``(batch, heads, n, e)``, fast."""
        raise NotImplementedError

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> State:
        """The state before any token."""
        raise NotImplementedError

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, State]:
        """``(A v for the new tokens, the state after them)``: causal prefill and decoding are this one call.

        ``key_mask (batch, new)`` bool marks the real tokens among the new ones; rows of padding are unspecified but
        finite.
        """
        raise NotImplementedError

    def written(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        """The keys ``(b, h, m, d)`` that values are written under, for a host's bonus."""
        return k

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        """What ``forward`` costs for ``shape``, and the bytes of the state after ``shape.keys`` tokens."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> Sequence[Example]:
        """Small instances that the laws examine."""
        raise NotImplementedError

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        """``(batch or 1, heads or 1, n, m)`` bool, or some ``rows``: where A may be non-zero, from positions alone."""
        return layout.allowed(n, m, device, rows)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        """The ``rows`` of A, ``(batch, heads, rows, m)``, from ``weights`` of those queries: what probes read."""
        n, m = q.shape[2], k.shape[2]
        if layout.causal and not self.traits.suffix:
            return self.weights(q, k, layout, **signals)[:, :, rows]
        start, stop, _ = rows.indices(n)
        cut, keys = layout.slice(n, m, slice(start, stop))
        sliced = {
            name: value[:, :, start:stop] if self.signals[name].side == "query" else value[:, :, :keys]
            for name, value in signals.items()
        }
        part = self.weights(q[:, :, start:stop], k[:, :, :keys], cut, **sliced)
        return nn.functional.pad(part, (0, m - keys))

    def influence(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        """What is shown of each row: A, or ``‖∂o_i/∂v_j‖ / √e`` where the output is not linear in v, detached.

        The norm is Frobenius', which over √e is |A_ij| where o_i = Σ_j A_ij v_j. Shapes: as of `rows`. Cost: e
        batches of `forward`, and a backward pass of these for each row.
        """
        if self.traits.linear:
            return self.rows(q, k, layout, rows, **signals)
        self.check(q, k, v, layout, signals)
        heads, e = q.shape[1], v.shape[3]
        own = {x: repeat_heads(s, heads) if self.signals[x].heads == "kv_heads" else s for x, s in signals.items()}

        def copies(x: Tensor) -> Tensor:
            """One for each channel of the output."""
            return x.detach().repeat_interleave(e, 0)

        with torch.enable_grad():
            values = copies(repeat_heads(v, heads)).requires_grad_()
            out = self.forward(
                *(copies(q), copies(repeat_heads(k, heads)), values, layout.repeated(e)),
                **{name: copies(signal) for name, signal in own.items()},
            )
            channels = out.view(q.shape[0], e, *out.shape[1:]).diagonal(dim1=1, dim2=4)  # (b, h, n, e)
            found = [
                torch.autograd.grad(channels[:, :, row].sum(), values, retain_graph=True)[0]
                for row in range(*rows.indices(q.shape[2]))
            ]
        if not found:
            return q.new_zeros(*q.shape[:2], 0, k.shape[2])
        norms = torch.stack([x.view(q.shape[0], e, *x.shape[1:]).square().sum((1, 4)) for x in found], 2)
        return (norms / e).sqrt()

    def check(self, q: Tensor, k: Tensor, v: Tensor | None, layout: Layout, signals: Mapping[str, Tensor]) -> None:
        """Raises an error that names the argument if the inputs do not fit each other or the traits."""
        check_tensors(q, k, v)
        name = type(self).__name__
        if not isinstance(layout, Layout):
            came = f"a tensor of {layout.dtype}" if isinstance(layout, Tensor) else repr(layout)
            raise wrong("layout", came, f"a Layout: {instead(self.traits, 'mask')}", TypeError)
        layout.check(q, k)
        if layout.causal and not self.traits.causal:
            raise wrong("layout.causal", "True", f"False: {name} is bidirectional only")
        if not layout.causal and not self.traits.bidirectional:
            raise wrong("layout.causal", "False", f"True: {name} is causal only")
        if not layout.causal and q.shape[2] != k.shape[2] and not self.traits.cross:
            raise wrong("k", f"{k.shape[2]} keys", f"the {q.shape[2]} tokens of q: {name} is self-attention")
        if layout.causal and q.shape[2] < k.shape[2] and not self.traits.suffix:
            wanted = f"as many: rows of {name} read earlier queries, which `extend` remembers"
            raise wrong("q", f"{q.shape[2]} queries over {k.shape[2]} keys", wanted)
        if q.shape[1] != k.shape[1] and not self.traits.grouped:
            raise wrong("k", f"{k.shape[1]} heads", f"the {q.shape[1]} heads of q: {name} does not group queries")
        if layout.segments is not None and not self.traits.packed:
            raise wrong("layout.segments", "packed documents", f"None: {name} does not pack")
        if layout.mask is not None and not self.traits.masked:
            way = "say it by causal, keys or segments, or take a mechanism that can, such as softmax or pattern"
            raise wrong("layout.mask", "a mask", f"None: {name} cannot hide single pairs; {way}")
        if layout.bias is not None and not self.traits.biased:
            raise wrong("layout.bias", "a bias", f"None: nothing is added to the scores of {name}; softmax takes one")
        for missing in self.signals.keys() - signals.keys():
            raise wrong(missing, "nothing", f"the signal of {name}: {self.signals[missing].meaning}", TypeError)
        for unknown in signals.keys() - self.signals.keys():
            known = ", ".join(self.signals) or "no signals"
            known = instead(self.traits, ELSEWHERE[unknown]) if unknown in ELSEWHERE else f"one of {name}'s: {known}"
            raise wrong(unknown, "an unknown signal", known, TypeError)
        for given, spec in self.signals.items():
            spec.check(given, signals[given])


def instead(traits: Traits, what: str) -> str:
    """How a call says ``what`` another library takes as an argument."""
    if what == "bias":
        here = "layout=Layout(bias=…) (batch or 1, heads or 1, n, m), or " if traits.biased else ""
        return f"{here}what is added to scores as a part of the mechanism: composed(bias=alibi), t5, table"
    if what != "mask":
        return what
    pairs = "Layout(mask=…) (batch or 1, heads or 1, n, m), True = may be seen; " if traits.masked else ""
    return f"{pairs}Layout(key_mask=…) (batch, m) for padding, Layout(causal=True), or several of them in one"


def in_wide(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method of queries, keys and signals, computed in the precision of sums and rounded to the dtype of q."""

    @wraps(method)
    def computed(self: Mechanism, q: Tensor, k: Tensor, *others: Any, **signals: Any) -> Tensor:
        wide = accumulate_dtype(q.dtype)
        if wide == q.dtype or k.dtype != q.dtype:  # dtypes that differ are for `check` to name
            return method(self, q, k, *others, **signals)
        narrow = q.dtype

        def widened(x: Any) -> Any:
            return x.to(wide) if getattr(x, "dtype", None) == narrow else x

        given = {name: widened(x) for name, x in signals.items()}
        return method(self, q.to(wide), k.to(wide), *map(widened, others), **given).to(narrow)

    return computed


def at_hand(x: Tensor) -> bool:
    """Whether reading ``x`` costs nothing: on a CPU, outside of a compiler."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_tensors(q: Tensor, k: Tensor, v: Tensor | None) -> None:
    """Raises an error naming the tensor among q, k, v whose shape, dtype or device does not fit the contract."""
    given = {"q": q, "k": k} | ({} if v is None else {"v": v})
    for name, tensor in given.items():
        if tensor.dim() != 4:
            raise wrong(name, f"shape {tuple(tensor.shape)}", "4 axes: (batch, heads, tokens, dim)")
        if not tensor.is_floating_point():
            raise wrong(name, f"dtype {tensor.dtype}", "a floating-point dtype", TypeError)
        if tensor.dtype != q.dtype:
            raise wrong(name, f"dtype {tensor.dtype}", f"the dtype of q, {q.dtype}", TypeError)
        if tensor.device != q.device:
            raise wrong(name, f"device {tensor.device}", f"the device of q, {q.device}")
        if tensor.shape[0] != q.shape[0]:
            raise wrong(name, f"batch {tensor.shape[0]}", f"the batch of q, {q.shape[0]}")
    if k.shape[3] != q.shape[3]:
        raise wrong("k", f"head_dim {k.shape[3]}", f"the head_dim of q, {q.shape[3]}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise wrong("k", f"{k.shape[1]} heads", f"a divisor of the {q.shape[1]} heads of q")
    if v is not None and v.shape[1:3] != k.shape[1:3]:
        raise wrong("v", f"(heads, tokens) {tuple(v.shape[1:3])}", f"those of k, {tuple(k.shape[1:3])}")


def check_sizes(q: Tensor, heads: int, head_dim: int) -> None:
    """Raises an error naming q if it has other heads than the parameters of a mechanism, or others of their size."""
    if (q.shape[1], q.shape[3]) != (heads, head_dim):
        raise wrong("q", f"{q.shape[1]} heads of {q.shape[3]}", f"{heads} heads of {head_dim}")


def masked_softmax(scores: Tensor, seen: Tensor, sink: Tensor | None = None) -> Tensor:
    """Softmax over the last axis where ``seen``, zero elsewhere and in rows that see nothing.

    The logits ``sink (heads,)`` take a share that no column gets.
    """
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].to(scores.dtype).expand(*scores.shape[:3], 1)], dim=-1)
    return torch.softmax(scores, dim=-1)[..., : seen.shape[-1]].masked_fill(~seen, 0)


def raised(scores: Tensor, layout: Layout, rows: slice = slice(None)) -> Tensor:
    """Some rows of the scores ``(b, h, rows, m)`` with what the layout adds to them."""
    return scores if layout.bias is None else scores + layout.bias[:, :, rows].to(scores.dtype)


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """``(batch, kv_heads, …)`` repeated to ``(batch, heads, …)``: kv head g serves queries g·r … g·r + r − 1."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, otherwise the dtype itself: what sums are kept in."""
    return torch.promote_types(dtype, torch.float32)


def __getattr__(name: str) -> Any:
    if name == "Host":
        warn("Host", "LayerSpec")
        return LayerSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
