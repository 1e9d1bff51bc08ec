"""Cost linear in the length: lightning, flow, efficient and agent attention, and blocks of linear attention."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import regard
from regard.blocks.attention import Attention
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval, listed
from regard.compare.quality import QualityCell
from regard.core.layout import Layout
from regard.experiments.cell import Cell
from regard.mechanisms.linear.flow import EPSILON
from regard.mechanisms.linear.lightning import Lightning, alibi_slopes
from regard.networks import Config
from regard.networks.lightning.chela import ChelaLM
from regard.networks.lightning.chela_block import ChelaBlock, ShortLong
from regard.networks.lightning.transnormer_block import TransnormerBlock
from regard.tasks import batch
from regard.tasks.listops import ListOps
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).abs().max() / want.abs().max()).item()


def quadratic(q: Tensor, k: Tensor, v: Tensor, slopes: list[float]) -> Tensor:
    """The paper's reference: the product, times a table of powers, times the values."""
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    table = torch.exp(-torch.tensor(slopes, dtype=q.dtype)[:, None, None] * distance).tril()
    return (q @ k.mT * table.nan_to_num(posinf=0).tril()) @ v


@measured(n=(64, 257, 1153))
def lightning(n: int) -> dict[str, float]:
    """The largest relative difference, float32 beside the quadratic form in float64, of output and gradients."""
    torch.manual_seed(3)
    leaves = [torch.randn(2, 4, n, size, dtype=torch.float64).requires_grad_() for size in (17, 17, 19)]
    single = [x.detach().float().requires_grad_() for x in leaves]
    want = quadratic(*leaves, slopes=list(alibi_slopes(4)))
    got = Lightning()(single[0], single[1], single[2], CAUSAL)
    pairs = [(got, want)]
    pairs += zip(
        torch.autograd.grad(got.square().sum(), single), torch.autograd.grad(want.square().sum(), leaves), strict=True
    )
    return {"apart": max(relative(a, b) for a, b in pairs)}


@measured()
def lightning_steps() -> dict[str, float | int]:
    """331 tokens one by one: how far the output is from that of one call, and the sizes that the state has."""
    torch.manual_seed(3)
    mechanism, sizes = Lightning(), set()
    q, k, v = (torch.randn(2, 4, 331, 17) for _ in range(3))
    state, outputs = mechanism.start(2), []
    for t in range(331):
        out, state = mechanism.extend(q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1], state)
        outputs.append(out)
        sizes.add(state.bytes)
    return {"apart": relative(torch.cat(outputs, 2), mechanism(q, k, v, CAUSAL)), "sizes": len(sizes)}


def decodes(found: Figures) -> Finding:
    """Equal to 1e-4, with one size of state."""
    apart, sizes = found.one("apart"), found.one("sizes")
    return Finding.of(f"331 tokens one by one equal to {apart:.0e}, {sizes} size of state", apart < 1e-4, sizes == 1)


LENGTHS = (4096, 16384, 65536)


@measured()
def lightning_time() -> dict[str, float]:
    """Time of 64k tokens of one head in one call, as texts of several lengths, over that of 4k: the median of 27.

    Each length comes first in a third of the rounds: what comes first is slower.
    """
    mechanism = Lightning()
    batches = {n: [torch.randn(LENGTHS[-1] // n, 1, n, 64) for _ in range(3)] for n in LENGTHS}
    ratios: dict[int, list[float]] = {n: [] for n in LENGTHS}
    for turn in range(27):
        seconds = {}
        for place in range(len(LENGTHS)):
            n = LENGTHS[(turn + place) % len(LENGTHS)]
            q, k, v = batches[n]
            begun = time.process_time()
            with torch.no_grad():
                mechanism(q, k, v, CAUSAL)
            seconds[n] = time.process_time() - begun
        for n in LENGTHS:
            ratios[n].append(seconds[n] / seconds[LENGTHS[0]])
    return {f"at_{n}": statistics.median(ratios[n]) for n in LENGTHS}


def within_ten_percent(found: Figures) -> Finding:
    """Within 10% from 4k to 64k."""
    row = [found.one(f"at_{n}") for n in LENGTHS]
    figure = f"time a token over that at 4k: {listed(row, '.2f')} at 4k, 16k and 64k, as many tokens in each call"
    return Finding.of(figure, max(row) <= 1.1 * min(row))


def flow_draw(n: int, m: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 2, size, 6, dtype=torch.float64) for size in (n, m, m)]


@measured(m=(41, 29))
def conserved(m: int) -> dict[str, float]:
    """How far A is from the authors' formulas, and its rows without competition from the allocation alone."""
    q, k, _ = flow_draw(41, m)
    left, right = q.sigmoid(), k.sigmoid()
    into, out_of = left @ right.sum(2)[..., None], right @ left.sum(2)[..., None]
    weights = regard.build("flow").weights(q, k)
    sink = left @ (right / out_of).sum(2)[..., None]
    source = (right @ (left / into).sum(2)[..., None])[..., 0].clamp(-1, 1)
    share = torch.softmax(source, -1) * m
    want = torch.sigmoid(sink * 41 / m) * (left @ right.mT) / into * share[..., None, :]
    rows = (weights / share[..., None, :]).sum(-1) - torch.sigmoid(sink * 41 / m)[..., 0]
    return {"apart": ((weights - want).abs() / (1 + want)).max().item(), "rows": rows.abs().max().item()}


def is_conserved(found: Figures) -> Finding:
    """To 1e-5, the paper's ε, and the formulas to 20 of it."""
    apart, rows = max(found("apart")), max(found("rows"))
    return Finding.of(f"conservation to {rows:.0e}, formulas to {apart:.0e}", rows < 1e-5, apart < 20 * EPSILON)


@measured()
def flow_steps() -> dict[str, float]:
    """How far causal flow is from the factors of the tokens so far alone, token by token."""
    q, k, v = flow_draw(41, 41)
    left, right = q.sigmoid() + EPSILON, k.sigmoid() + EPSILON
    out = regard.build("flow")(q, k, v, CAUSAL)
    shares: list[Tensor] = []
    kept_in = kept_out = torch.zeros(1, 2, 6, dtype=torch.float64)
    weight, worst = torch.zeros(1, 2, dtype=torch.float64), 0.0
    for t in range(41):
        place = t + 1
        into = (left[:, :, t] * (k.sigmoid()[:, :, :place].sum(2) + EPSILON)).sum(-1) / place
        out_of = (right[:, :, t] * (q.sigmoid()[:, :, :place].sum(2) + EPSILON)).sum(-1) / place
        kept_out = kept_out + k.sigmoid()[:, :, t] / out_of[..., None]
        kept_in = kept_in + q.sigmoid()[:, :, t] / into[..., None]
        sink = (left[:, :, t] * (kept_out + EPSILON)).sum(-1) / place
        source = ((right[:, :, t] * (kept_in + EPSILON)).sum(-1) / place).clamp(-1, 1).exp()
        weight = weight + source
        shares.append(source / weight * place)
        scores = torch.einsum("bhd,bhjd->bhj", q.sigmoid()[:, :, t], k.sigmoid()[:, :, :place])
        row = torch.sigmoid(sink)[..., None] * scores / (into * place)[..., None] * torch.stack(shares, -1)
        want = (row[..., None] * v[:, :, :place]).sum(2)
        worst = max(worst, ((out[:, :, t] - want).abs() / (1 + want.abs())).max().item())
    return {"apart": worst}


@measured(name=("efficient", "agent", "flow"))
def doubled(name: str) -> dict[str, float]:
    """How many times the FLOPs for twice the tokens."""
    costs = [regard.build(name).cost(regard.Shape(n), Layout()).flops for n in (8192, 16_384)]
    return {"ratio": costs[1] / costs[0]}


def doubled_of(name: str) -> Cell:
    return doubled.cell(name=name)


@measured()
def scaling() -> dict[str, float]:
    """How far efficient attention with scaling is from (Q Kᵀ / m) V."""
    q, k, v = small()
    return {
        "apart": (regard.build("efficient", normaliser="scaling")(q, k, v) - (q @ k.mT / 29) @ v).abs().max().item()
    }


def small(n: int = 13, m: int = 29) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, size, 7, generator=generator, dtype=torch.float64) for size in (n, m, m)]


@measured()
def rows_of_efficient() -> dict[str, float]:
    """How far the sums of the implied rows are from one."""
    q, k, _ = small()
    rows = regard.build("efficient")(q, k, torch.eye(29, dtype=torch.float64).expand(2, 3, -1, -1))
    return {"apart": (rows.sum(-1) - 1).abs().max().item()}


@measured()
def two_matrices() -> dict[str, float]:
    """How far agent attention is from its two explicit softmax matrices around the pooled queries."""
    q, k, v = small(35, 35)
    agents, scale = q.unflatten(2, (5, 7)).mean(3), 7**-0.5
    want = (q @ agents.mT * scale).softmax(-1) @ ((agents @ k.mT * scale).softmax(-1) @ v)
    return {"apart": (regard.build("agent", agents=5)(q, k, v) - want).abs().max().item()}


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all that operations make anew."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **kwargs or {})
        made = (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor))
        self.total += sum(x.nbytes() for x in made if x.data_ptr() not in given)
        return out


@measured(n=(1024, 2048, 4096))
def memory(n: int) -> dict[str, int]:
    """Bytes that a step of efficient attention makes, gradients included."""
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for _ in range(3))
    with Allocated() as allocated:
        regard.build("efficient")(q, k, v).sum().backward()
    return {"bytes": allocated.total}


def grows_evenly(found: Figures) -> Finding:
    """As many bytes for each further token."""
    first, second, third = found("bytes")
    figure = f"{(third - second) / 2048:,.0f} bytes a token from 1,024 to 4,096"
    return Finding.of(figure, third - second == 2 * (second - first) > 0)


@measured(block=("chela", "transnormer"), n=(1024, 4096, 16384))
def time_of_block(block: str, n: int) -> dict[str, float]:
    """Seconds of CPU of forward and backward of 16,384 tokens a batch, the least of seven."""
    torch.manual_seed(0)
    made = ChelaBlock(128, 4, 128, length=1024) if block == "chela" else TransnormerBlock(128, 4, 128)
    best = math.inf
    for _ in range(7):
        x = torch.randn(16384 // n, n, 128)
        begun = time.process_time()
        made(x, CAUSAL).square().mean().backward()
        best = min(best, time.process_time() - begun)
    return {"seconds": best}


def time_of(block: str) -> list[Cell]:
    return [time_of_block.cell(block=block, n=n) for n in (1024, 4096, 16384)]


def within_15_percent(found: Figures) -> Finding:
    """At 4k and 16k tokens within 15% of 1k."""
    first, *others = found("seconds")
    ratios = [seconds / first for seconds in others]
    figure = f"time a token at 4k and 16k over that at 1k: {listed(ratios, '.2f')}"
    return Finding.of(figure, all(abs(ratio - 1) < 0.15 for ratio in ratios))


def weighted_sum(x: Tensor, kernel: Tensor) -> Tensor:
    """``y_i = Σ_t kernel_t ⊙ x_{i−t}``, tap by tap."""
    n = x.shape[1]
    return sum((F.pad(x, (0, 0, t, 0))[:, :n] * kernel[t] for t in range(min(n, len(kernel)))), torch.zeros_like(x))


@measured(case=("131 131 3", "131 29 7", "29 131 5", "1 11 3"))
def merged_kernel(case: str) -> dict[str, float]:
    """How far the merged kernel is from the two convolutions in float32, for tokens, length and taps."""
    n, length, taps = map(int, case.split())
    torch.manual_seed(0)
    both, x = ShortLong(7, length, taps), torch.randn(3, n, 7)
    return {"apart": (both.merged()(x) - both(x)).abs().max().item()}


def chela_by_definition(block: Any, x: Tensor) -> Tensor:
    """The equations of the block with both convolutions tap by tap and all of q kᵀ."""

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

    attention, network = block.attention, block.network
    p, feed = attention.projection, attention.feed
    y = norm(x, block.norms[0].weight)
    z = weighted_sum(y, feed.short.weight) + weighted_sum(y, feed.weight)
    q, k, v = (F.silu(layer(z)).unflatten(-1, (p.heads, -1)).transpose(1, 2) for layer in (p.q, p.k, p.v))
    out = norm((q @ k.mT).tril() @ v, attention.scale).transpose(1, 2).flatten(2)
    h = x + p.out(out * F.silu(attention.gate(z)))
    y = norm(h, block.norms[1].weight)
    return h + network.down(F.silu(network.gate(y)) * network.up(y))


def transnormer_by_definition(block: Any, x: Tensor) -> Tensor:
    """The paper's equations of the whole block, with all of q kᵀ."""

    def norm(x: Tensor) -> Tensor:
        return x * x.shape[-1] ** 0.5 / (x.square().sum(-1, keepdim=True) + 1e-6 * x.shape[-1]).sqrt()

    attention, heads, n = block.attention, block.attention.heads, x.shape[1]
    q, k, v, u = F.linear(norm(x), attention.qkvu.weight).chunk(4, -1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (F.silu(q), F.silu(k), v))
    apart = (torch.arange(n)[:, None] - torch.arange(n)).to(x.dtype)
    decay = torch.exp(-torch.tensor(attention.mechanism.slopes, dtype=x.dtype))
    angles = torch.zeros(heads, 1, q.shape[-1], dtype=x.dtype) if attention.angles is None else attention.angles
    turned = torch.cos(apart[None, :, :, None] * angles[:, :, None])
    products = torch.einsum("bhic,bhjc,hijc->bhij", q, k, turned)
    out = (products * decay[:, None, None] ** apart.clamp(min=0)).tril() @ v
    h = x + F.linear(norm(out.transpose(1, 2).flatten(2)) * u, attention.out.weight)
    network, z = block.network, norm(h)
    return h + F.linear(F.linear(z, network.gate.weight) * F.linear(z, network.up.weight), network.down.weight)


@measured(dtype=("float32", "float64"))
def chela_block(dtype: str) -> dict[str, float]:
    """The largest relative difference of output and gradients from the equations with all of q kᵀ."""
    torch.manual_seed(0)
    return against(ChelaBlock(24, 3, 20, length=53).to(getattr(torch, dtype)), chela_by_definition)


@measured(layer=(0, 1))
def transnormer_block(layer: int) -> dict[str, float]:
    """The largest relative difference of output and gradients from the quadratic form, in float64."""
    torch.manual_seed(0)
    return against(TransnormerBlock(24, 3, 20, layer, 2).double(), transnormer_by_definition)


def against(block: nn.Module, definition: Any) -> dict[str, float]:
    weights = [p for p in block.parameters() if p.requires_grad]
    x = torch.randn(2, 131, 24, dtype=weights[0].dtype, requires_grad=True)
    found = []
    for out in (block(x, CAUSAL), definition(block, x)):
        found.append([out, *torch.autograd.grad((out * out.detach().sin()).sum(), [x, *weights])])
    return {"apart": max(relative(a, b) for a, b in zip(*found, strict=True))}


def is_its_equations(found: Figures) -> Finding:
    """To 1e-4 in float32 and 1e-9 in float64."""
    single, double = (found.one("apart", dtype=dtype) for dtype in ("float32", "float64"))
    return Finding.of(f"equal to {single:.0e} in float32, {double:.0e} in float64", single < 1e-4, double < 1e-9)


@measured(convolutions=(True, False), seed=range(5), steps=[1500])
def nested_lists(convolutions: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of nested lists of up to 128 tokens whose value two layers tell, with the convolutions and without."""
    n = 128
    drawn, _ = batch(ListOps(4, 8), torch.Generator().manual_seed(7), 6000, n)
    ids, held = drawn[:-1000], drawn[-1000:]
    model: Any = ChelaLM(Config(ListOps.vocabulary, width=32, layers="lightning*2", heads=2), n, seed=seed)
    for block in () if convolutions else model.layers:
        block.attention = Attention(block.attention.mechanism, block.attention.projection)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        x = ids[torch.randint(len(ids), (48,), generator=generator)]
        return F.cross_entropy(ready(x[:, :-1])[:, -1], x[:, -1])

    fit(model, loss, Recipe(steps, rate=5e-3, seed=seed))
    with torch.no_grad():
        return {"right": (model(held[:, :-1])[:, -1].argmax(-1) == held[:, -1]).float().mean().item()}


def three_points_above(found: Figures) -> Finding:
    """At least 3 points above linear attention alone on average."""
    own, alone = (found("right", convolutions=value) for value in (True, False))
    gain = (sum(own) - sum(alone)) / len(own)
    shown = f"nested lists {interval(own, '.1%')}, {interval(alone, '.1%')} without convolutions"
    return Finding.of(f"{shown}: {100 * gain:.1f} points, wanted 3", gain >= 0.03)


def listops() -> list[Cell]:
    """Lists of operations, as `regard compare flow linear --task listops` measures them."""
    return [QualityCell(name, "listops", seed) for name in ("flow", "linear") for seed in range(3)]


def above_linear(found: Figures) -> Finding:
    """On average above linear attention."""
    own, linear = (found("accuracy", mechanism=name) for name in ("flow", "linear"))
    figure = f"lists of operations {interval(own, '.1%')}, linear attention {interval(linear, '.1%')}"
    return Finding.of(figure, sum(own) > sum(linear))
