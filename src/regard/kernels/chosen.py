"""Softmax attention to chosen blocks of keys, in four ways that agree: the cheapest is taken for each call.

By blocks of queries, over the block-sparse kernel; by queries gathered for each block of keys; by keys gathered for
each query, as decoding does; and under a mask of all pairs, which is faster than the others where there are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from regard.core.errors import wrong
from regard.core.mechanism import accumulate_dtype
from regard.core.reduction import Partial
from regard.kernels import dense, flash
from regard.kernels import device as gpu
from regard.kernels.block_sparse import pairs
from regard.kernels.block_sparse.plan import attend_blocks
from regard.kernels.tiled import split
from regard.patterns.choice import Choice, Rows
from regard.patterns.cover import Cover

Route = Literal["blocks", "queries", "keys", "mask"]
FEW = 16
"""Queries up to which their keys are gathered."""
COARSE = 32
"""Keys in a block from which queries are gathered for it."""
WHOLE = 1 << 17
"""Pairs up to which one call under a mask is faster than pieces."""
DEAR = 9
"""How many times a gathered key costs what one under a mask does; measured, as the next two, with 64 channels."""
CALLS = {False: 2_000, True: 4_000}
"""The same of a call for some queries of one block of keys, without and with gradients."""
MERGED = {False: 50, True: 75}
"""The same of a query's output for one block, put in order and merged."""
GATHERED = 1 << 14
"""Keys of one head that are gathered at a time."""
NEAR = 1 << 10
"""The same where they are read once, and are to be near when they are."""
PAIRS = 1 << 17
"""Pairs of a query and a block whose outputs are kept until they are merged."""

BAGS = torch.ops.aten._embedding_bag_forward_only

if BAGS not in flop_registry:  # PyTorch does not count sums that are weighted

    @register_flop_formula(BAGS)
    def count_bags(lines, places, offsets, scaled=False, mode=0, sparse=False, shares=None, *args, **kwargs) -> int:
        """FLOPs of weighted sums of lines; those of sums without weights are not products."""
        return 0 if shares is None else 2 * prod(places) * lines[1]


def attend(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float | None = None, way: Route | None = None):
    """Softmax attention of each query to the keys of the blocks chosen for it: ``(out, log-sum-exp)``.

        o_i = Σ_{j ∈ C(i)} p_ij v_j,   p_i = softmax over C(i) of scale q_i · k_j

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> `Partial` of ``(b, h, n, e)``; differentiable
    in q, k and v. A query that sees nothing gets zeros. Cost: ``4 cells max(d, e)`` FLOPs a head.

    Args:
        way: one of the ways, where it fits; None for the cheapest.

    Raises:
        ValueError: a choice of other sizes, or a way that does not fit: blocks of queries need rows of several that
            end with the keys.
    """
    sizes = choice.rows.n, choice.rows.m, choice.index.shape[:2]
    if sizes != (q.shape[2], k.shape[2], q.shape[:2]):
        raise wrong("choice", f"{sizes}", f"{(q.shape[2], k.shape[2], tuple(q.shape[:2]))}")
    if not (k.shape[2] and q.shape[2] and choice.index.shape[3]):
        return dense.over(q, k, v, [], scale)
    slopes = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return WAYS[way or cheapest(choice, slopes, gpu.usable(q))](q, k, v, choice, scale)


def cheapest(choice: Choice, slopes: bool = False, on_gpu: bool = False) -> Route:
    """The way that is taken; with ``slopes``, for gradients, no copies of keys are made for many queries."""
    rows, width = choice.rows, choice.index.shape[3] * choice.rows.block
    if rows.n <= FEW and width < rows.m:
        return "keys"
    if rows.n * rows.m <= WHOLE:
        return "mask"
    aligned = rows.here.shape[0] == 1 and int(rows.here[0, 0]) >= 0
    if rows.size > 1 and aligned:
        return "blocks"
    if rows.size == 1 and (on_gpu or (rows.block >= COARSE and aligned)):
        return "queries"
    return finely(rows.n, rows.m, rows.block, choice.index.shape[3], slopes, aligned)


def finely(n: int, m: int, block: int, budget: int, slopes: bool = False, aligned: bool = True) -> Route:
    """The cheapest way to small blocks, by what each costs for one head, in pairs of a query and a key under a mask."""
    calls = 2 * -(-m // block) * -(-n * budget // PAIRS)
    costs: dict[Route, int] = {"mask": n * m}
    if not slopes:
        costs["keys"] = n * budget * block * DEAR
    if aligned:
        costs["queries"] = CALLS[slopes] * calls + MERGED[slopes] * n * budget
    return min(costs, key=costs.__getitem__)


def cells(n: int, m: int, block: int, size: int, budget: int) -> int:
    """The most entries of A that `attend` computes for one head, where all sequences stand alike."""
    few, fine = n <= FEW and budget * block < m, size == 1 and block < COARSE and finely(n, m, block, budget) == "mask"
    if not few and (n * m <= WHOLE or fine):
        return n * m
    return -(-n // size) * size * min(budget * block, -(-m // block) * block)


def by_mask(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float | None) -> Partial:
    """All pairs of some rows at a time, those not chosen hidden."""
    step = max(dense.MASKED_ROWS // choice.rows.size, 1) * choice.rows.size
    parts = [
        dense.Piece(rows, slice(0, k.shape[2]), mask=choice.at(rows).spread(), alone=True)
        for rows in split(0, q.shape[2], step)
    ]
    return dense.over(q, k, v, parts, scale)


def by_keys(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float | None) -> Partial:
    """The keys of its blocks for each row, a few rows at a time, read where they stand if that can be, else copied."""
    rows, width = choice.rows, max(choice.index.shape[3] * choice.rows.block, 1)
    step = max(GATHERED // width, 1) * rows.size
    factor = q.shape[3] ** -0.5 if scale is None else scale
    run = where_they_stand if fits_lines(q, k, v, rows) else copied
    parts = [run(q[:, :, some], k, v, choice.at(some), factor) for some in split(0, rows.n, step)]
    if len(parts) == 1:
        return parts[0]
    return Partial(torch.cat([part.out for part in parts], 2), torch.cat([part.lse for part in parts], 2))


def copied(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float) -> Partial:
    """`by_keys` of some rows, under a mask of the copies."""
    rows, (batch, heads), (tokens, mask) = choice.rows, q.shape[:2], found_at(choice)
    count, size = rows.count, rows.size
    folded = F.pad(q, (0, 0, 0, count * size - rows.n)).reshape(batch * heads * count, 1, size, -1)
    keys, values = (gathered(x, tokens).flatten(0, 2)[:, None] for x in (k, v))
    seen = mask.expand(-1, -1, -1, size, -1).reshape(-1, 1, size, tokens.shape[3])
    piece = dense.Piece(slice(0, size), slice(0, tokens.shape[3]), mask=seen)
    part = dense.over(folded, keys, values, [piece], scale)
    out = part.out.reshape(batch, heads, count * size, -1)[:, :, : rows.n]
    return Partial(out, part.lse.reshape(batch, heads, count * size)[:, :, : rows.n])


def found_at(choice: Choice) -> tuple[Tensor, Tensor]:
    """The keys ``(b, h, rows, t)`` of the blocks of each row, and which of them each query sees.

    The latter is ``(b, h, rows, size or 1, t)``. A last block that is shorter begins earlier, so that all are of one
    length; what it then has of the block before is not seen there.
    """
    rows = choice.rows
    span, first = min(rows.block, rows.m), choice.index[..., None] * rows.block
    tokens = first.clamp(0, rows.m - span) + torch.arange(span, device=first.device)
    mask = (tokens >= first) & (first >= 0) if rows.m % span else (first >= 0).expand_as(tokens)
    tokens, mask = tokens.flatten(3), mask.flatten(3)[:, :, :, None]
    if rows.causal:
        here = F.pad(rows.here, (0, rows.count * rows.size - rows.n), value=-1)
        mask = mask & (tokens[:, :, :, None] <= here.view(-1, 1, rows.count, rows.size, 1))
    return tokens, mask


def fits_lines(q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> bool:
    """Whether `where_they_stand` can: rows of one query, no gradients, and tokens next to each other in storage."""
    plain = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and rows.size == 1
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return plain and not recorded and bool(k.numel() and v.numel()) and touching(k) and touching(v)


def touching(x: Tensor) -> bool:
    """Whether the tokens of each head of ``x (b, g, m, d)`` follow one another, and heads are whole tokens apart."""
    d = x.shape[3]
    return x.stride()[2:] == (d, 1) and not x.stride(0) % d and not x.stride(1) % d


def where_they_stand(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float) -> Partial:
    """`by_keys` of some rows of one query each: a few copies of keys at a time, and none of values."""
    (batch, heads, n, d), (tokens, mask) = q.shape, found_at(choice)
    span, width = min(choice.rows.block, choice.rows.m), tokens.shape[3]
    asked, scores = (q * scale).reshape(-1, d, 1), q.new_empty(batch * heads * n, width, 1)
    few, owner = max(NEAR // width, 1), heads_of(k, heads)
    keys, at = lines(k, span), (tokens[..., ::span] + owner).flatten().split(few * choice.index.shape[3])
    for near, some, out in zip(at, asked.split(few), scores.split(few), strict=True):
        torch.bmm(keys.index_select(0, near).view(-1, width, d), some, out=out)
    scores = scores[..., 0].masked_fill_(~mask.reshape(-1, width), -torch.inf)
    most = scores.amax(1, keepdim=True).clamp_(min=torch.finfo(q.dtype).min)
    shares = scores.sub_(most).exp_()
    sums = shares.sum(1, keepdim=True)
    lse, shares = sums.log().add_(most), shares.div_(sums.clamp(min=1))
    owner = owner if apart(k) == apart(v) else heads_of(v, heads)
    at = (tokens + owner).view(-1, width)
    out = F.embedding_bag(at, lines(v, 1), per_sample_weights=shares, mode="sum")
    return Partial(out.view(batch, heads, n, -1), lse.view(batch, heads, n))


def lines(x: Tensor, size: int) -> Tensor:
    """``(places, size * d)``: line p is what stands in storage from the p-th token of ``x (b, g, m, d)`` on.

    Lines of several tokens overlap: a view, to be read alone.
    """
    batch, groups, m, d = x.shape
    last = (batch - 1) * x.stride(0) + (groups - 1) * x.stride(1) + (m - size) * d
    return x.as_strided((last // d + 1, size * d), (d, 1))


def apart(x: Tensor) -> tuple[int, int]:
    """How many tokens of storage lie from a sequence of ``x (b, g, m, d)`` to the next, and from a head to the next."""
    return x.stride(0) // x.shape[3], x.stride(1) // x.shape[3]


def heads_of(x: Tensor, heads: int) -> Tensor:
    """``(b or 1, h, 1, 1)``: the number in `lines` of the first token that each head reads of ``x (b, g, m, d)``."""
    (batch, groups), (sequence, head) = x.shape[:2], apart(x)
    owner = torch.arange(heads)[:, None, None] // (heads // groups) * head
    return owner[None] if batch == 1 else owner + torch.arange(batch)[:, None, None, None] * sequence


def gathered(x: Tensor, tokens: Tensor) -> Tensor:
    """``(b, h, rows, t, d)``: the ``tokens (b, h, rows, t)`` of ``x (b, g, m, d)``, whose storage is not copied."""
    group = tokens.shape[1] // x.shape[1]
    if x.device.type != "cpu":
        batch, heads = (torch.arange(size, device=x.device) for size in tokens.shape[:2])
        return x[batch[:, None, None, None], heads[:, None, None] // group, tokens]
    places = list(product(range(len(x)), range(tokens.shape[1])))
    if torch.is_grad_enabled():
        found = [x[b, h // group].index_select(0, tokens[b, h].flatten()) for b, h in places]
        return torch.stack(found).view(*tokens.shape, x.shape[3])
    whole = x.new_empty(*tokens.shape, x.shape[3])
    for b, h in places:
        torch.index_select(x[b, h // group], 0, tokens[b, h].flatten(), out=whole[b, h].view(-1, x.shape[3]))
    return whole


def by_blocks(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float | None) -> Partial:
    """Rows of queries over their lists, by the block-sparse kernel."""
    rows = choice.rows
    if rows.here.shape[0] != 1 or int(rows.here[0, 0]) != rows.m - rows.n:
        raise wrong("choice", "rows that do not end with the keys", "the last queries, every sequence alike")
    cover = Cover.from_index(choice.index, rows.n, rows.m, rows.size, rows.block)
    if not rows.causal:
        return attend_blocks(q, k, v, cover, False, scale)
    return attend_blocks(q, k, v, marked(cover), True, scale)


def marked(cover: Cover) -> Cover:
    """A cover whose blocks that the diagonal cuts are not full."""
    first = cover.owners % cover.query_blocks * cover.rows + (cover.m - cover.n)
    full = cover.full & (cover.columns * cover.cols + cover.cols - 1 <= first)
    return Cover(cover.n, cover.m, cover.rows, cover.cols, cover.offsets, cover.columns, full, cover.heads, cover.batch)


def by_queries(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float | None) -> Partial:
    """For each block of keys, the queries of its group that chose it, in one call of the fused operator."""
    if choice.rows.size > 1:
        raise wrong("choice", f"rows of {choice.rows.size} queries", "rows of one query each")
    if gpu.usable(q):
        return pairs.attend(q, k, v, choice, scale)
    e, wide = v.shape[3], max(q.shape[3], v.shape[3])
    factor = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v = (F.pad(x, (0, wide - x.shape[3])) if x.shape[3] < wide else x for x in (q, k, v))
    out, lse = cast(Any, Lists.apply)(q, k, v, choice, factor)
    return Partial(out[..., :e], lse)


def of_group(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, here: Tensor, rows: Rows, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries ``(heads, n, d)`` that stand ``here (n,)`` over one kv head's keys ``(m, d)``.

    Queries are put in the order of their blocks of ``index (heads, n, budget)`` at once, and so are the outputs merged.
    """
    (heads, n, _), budget, wide = q.shape, index.shape[2], accumulate_dtype(q.dtype)
    behind = here[:, None]
    wanted, own = index >= 0, torch.zeros((), dtype=torch.bool, device=q.device)
    if rows.causal:
        wanted, own = wanted & (index * rows.block <= behind), (index + 1) * rows.block > behind
    lists = torch.where(wanted, index * 2 + own, 2 * rows.blocks).int().flatten()
    order = lists.argsort(stable=True)
    counts = torch.bincount(lists, minlength=2 * rows.blocks).tolist()[: 2 * rows.blocks]
    order = order[: sum(counts)]
    number = torch.div(order, budget, rounding_mode="floor")
    asked = q.reshape(heads * n, -1).index_select(0, number)
    outs = torch.empty(len(order), v.shape[1], dtype=wide, device=q.device)
    sums = torch.empty(len(order), dtype=wide, device=q.device)
    run, stop = flash.attend if q.device.type == "cpu" else dense.by_products, 0
    for place, count in enumerate(counts):
        if not count:
            continue
        start, stop, first = stop, stop + count, place // 2 * rows.block
        keys, given, bias, shape = slice(first, min(first + rows.block, rows.m)), asked[start:stop], None, (1, count)
        if place % 2:
            behind, tokens = here[number[start:stop] % n], torch.arange(keys.start, keys.stop, device=q.device)
            if count == heads * len(tokens) and bool((behind.view(heads, -1) == tokens).all()):
                shape = heads, len(tokens)  # every query of the block, as the operator's own causality has it
            else:
                bias = dense.additive(tokens <= behind[:, None], q.dtype)
        causal = place % 2 == 1 and bias is None
        out, lse = run(given.view(1, *shape, -1), k[None, None, keys], v[None, None, keys], causal, bias, scale)
        outs[start:stop], sums[start:stop] = out.reshape(count, -1), lse.reshape(count)
    return merged(outs, sums, order, (heads, n, budget))


def merged(outs: Tensor, sums: Tensor, order: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """One weighted mean ``(heads, n, e)`` of the outputs of each query, and its log-sum-exp.

    ``order (pairs,)`` says which of heads · n · budget, in this order, an output of ``outs (pairs, e)`` is.
    """
    heads, n, budget = shape
    lse = torch.full((heads * n * budget,), -torch.inf, dtype=sums.dtype, device=sums.device).index_copy(0, order, sums)
    lse, place = lse.view(-1, budget), torch.zeros(heads * n * budget, dtype=torch.int64, device=sums.device)
    place = place.index_copy(0, order, torch.arange(len(order), device=sums.device)).view(-1, budget)
    total = lse.logsumexp(1)
    weights = (lse - total.masked_fill(total == -torch.inf, 0)[:, None]).exp()
    if not len(order):
        return outs.new_zeros(heads, n, outs.shape[1]), total.view(heads, n)
    out = F.embedding_bag(place, outs, per_sample_weights=weights, mode="sum")
    return out.view(heads, n, -1), total.view(heads, n)


class Call:
    """One call of the backward pass of `by_queries` after another.

    Args:
        choice: of the queries. groups: kv heads.
    """

    def __init__(self, choice: Choice, groups: int) -> None:
        rows, (batch, heads, n, budget) = choice.rows, choice.index.shape
        self.rows, self.heads, self.groups = rows, heads, groups
        owner = torch.arange(batch * heads, device=choice.index.device) // (heads // groups)
        lists = owner.view(batch, heads, 1, 1) * rows.blocks + choice.index
        here = rows.here[:, None, :, None]
        cut = (choice.index + 1) * rows.block > here + 1
        wanted = ((choice.index >= 0) & ((choice.index * rows.block <= here) | (not rows.causal))).flatten()
        number = torch.arange(batch * heads * n, device=choice.index.device).repeat_interleave(budget)
        lists, cut, number = lists.flatten()[wanted], (cut & rows.causal).flatten()[wanted], number[wanted]
        order = torch.argsort(lists * 2 + cut, stable=True)
        self.number = number[order]
        counts = torch.bincount(lists * 2 + cut, minlength=2 * batch * groups * rows.blocks)
        self.counts = counts.tolist()

    def pieces(self) -> Iterator[tuple[Tensor, int, slice, Tensor | None]]:
        """``(queries, kv head of the batch, keys, mask)`` of each call."""
        start, rows = 0, self.rows
        for place, count in enumerate(self.counts):
            if not count:
                continue
            owner, block = divmod(place // 2, rows.blocks)
            number, start = self.number[start : start + count], start + count
            keys = slice(block * rows.block, min((block + 1) * rows.block, rows.m))
            if not place % 2:
                yield number, owner, keys, None
                continue
            here = rows.here[min(owner // self.groups, len(rows.here) - 1)][number % rows.n]
            yield number, owner, keys, torch.arange(keys.start, keys.stop, device=here.device) <= here[:, None]


class Lists(torch.autograd.Function):
    """The calls merged; each one's backward is the fused operator's, given the merged output and log-sum-exp."""

    @staticmethod
    def forward(ctx, q, k, v, choice, scale):
        rows, group = choice.rows, q.shape[1] // k.shape[1]
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:3], dtype=accumulate_dtype(q.dtype), device=q.device)
        for row, owner in product(range(len(q)), range(k.shape[1])):
            heads, here = slice(owner * group, (owner + 1) * group), rows.here[min(row, len(rows.here) - 1)]
            for some in split(0, rows.n, max(PAIRS // max(group * choice.index.shape[3], 1), 1)):
                of = row, heads, some
                found = of_group(q[of], k[row, owner], v[row, owner], choice.index[of], here[some], rows, scale)
                out[of], lse[of] = found
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.calls, ctx.scale = Call(choice, k.shape[1]) if any(ctx.needs_input_grad) else None, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_lse):
        q, k, v, out, lse = ctx.saved_tensors
        grad, dim = torch.zeros_like(out) if grad is None else grad, q.shape[3]
        finite = lse.masked_fill(lse == -torch.inf, 0)
        if grad_lse is not None:
            q, k, v, out, grad = dense.with_lse_column(q, k, v, out, grad, grad_lse)
        sums = [torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (q, k, v)]
        flat, flat_out, flat_grad = (x.reshape(-1, x.shape[3]) for x in (q, out, grad))
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        totals, sum_q = [x.flatten(0, 1) for x in sums[1:]], sums[0].view(-1, sums[0].shape[3])
        run = flash.gradients if q.device.type == "cpu" else dense.by_products_backward
        for number, owner, part, mask in ctx.calls.pieces():
            of = slice(owner, owner + 1)
            given = (
                *(flat_grad[number][None, None], flat[number][None, None], keys[of, None, part]),
                *(values[of, None, part], flat_out[number][None, None], finite.view(-1)[number][None, None]),
            )
            found = run(*given, False, dense.additive(mask, q.dtype), ctx.scale)
            sum_q.index_add_(0, number, found[0][0, 0].to(sum_q.dtype))
            for total, piece in zip(totals, found[1:], strict=True):
                total[owner, part] += piece[0, 0]
        return *(x[..., :dim].to(q.dtype) for x in sums), None, None


WAYS = {"blocks": by_blocks, "queries": by_queries, "keys": by_keys, "mask": by_mask}
"""Each way by its name."""
