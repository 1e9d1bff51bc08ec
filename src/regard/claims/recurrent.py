"""Mechanisms whose past is a matrix: their forms are one, and their memories do what the papers say."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import elu, normalize

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.experiments.cell import Cell

CAUSAL = Layout(causal=True)
N, D, E = 149, 7, 5
SIGNALS: dict[str, dict[str, str]] = {
    "linear": {},
    "retnet": {},
    "gla": {"log_decay": "channels"},
    "deltanet": {"beta": "beta"},
    "gated_deltanet": {"log_decay": "log_decay", "beta": "beta"},
    "kimi_delta": {"log_decay": "channels", "beta": "beta"},
    "mamba2": {"step": "step"},
    "mamba": {"step": "step"},
    "rwkv6": {"log_decay": "channels"},
    "rwkv7": {"log_decay": "channels", "removed": "removed", "rate": "rate"},
}
"""Which drawn numbers are whose signals."""
SIZED: dict[str, dict[str, int]] = {"mamba2": {"heads": 2}} | {
    name: {"heads": 2, "head_dim": D} for name in ("mamba", "rwkv6", "rwkv7")
}


def draw(
    n: int = N, dtype: torch.dtype = torch.float64, heads: int = 2
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """q, unit k, v, and numbers for all signals."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    q, k, v = normal(1, heads, n, D), normalize(normal(1, heads, n, D), dim=-1), normal(1, heads, n, E)
    signals = {
        "log_decay": -normal(1, heads, n).abs() / 5,
        "channels": -(normal(1, heads, n, D).abs() / 5).clamp(max=0.6),
        "beta": normal(1, heads, n).sigmoid(),
        "step": normal(1, heads, n).abs() / 3,
        "removed": normal(1, heads, n, D),
        "rate": normal(1, heads, n, D).sigmoid(),
    }
    return q, k, v, signals


def made(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    return regard.build(kind, **SIZED.get(kind, {})).to(dtype)


def recurrence(kind: str, q: Tensor, k: Tensor, v: Tensor, s: dict[str, Tensor], mechanism: Any) -> Tensor:
    """Each paper's recurrence, one token at a time."""
    state, sums, outs = torch.zeros(*q.shape[:2], D, E, dtype=q.dtype), torch.zeros(1, dtype=q.dtype), []
    for t in range(q.shape[2]):
        query, key, value = q[:, :, t], k[:, :, t], v[:, :, t]
        if kind == "linear":
            query, key = elu(query) + 1, elu(key) + 1
            sums = sums + key
        if kind == "retnet":
            state = state * (1 - 2.0 ** (-5 - torch.arange(q.shape[1], dtype=q.dtype)))[None, :, None, None]
        if kind in ("gla", "kimi_delta"):
            state = state * s["channels"][:, :, t].exp()[..., None]
        if kind == "gated_deltanet":
            state = state * s["log_decay"][:, :, t].exp()[..., None, None]
        if kind in ("mamba", "mamba2"):
            step = s["step"][:, :, t, None]
            rate = mechanism.log_rate.exp() if kind == "mamba" else mechanism.log_rate.exp()[None, :, None]
            state, value = state * (-rate * step).exp()[..., None], value * step
        if kind == "rwkv6":
            own = key * mechanism.bonus
            outs.append((query[..., None] * (state + own[..., None] * value[..., None, :])).sum(-2))
            state = state * s["channels"][:, :, t].exp()[..., None] + key[..., None] * value[..., None, :]
            continue
        if kind == "rwkv7":  # the state as the paper has it: read by the removed key, then decayed
            removed, rate = normalize(s["removed"][:, :, t], dim=-1), s["rate"][:, :, t]
            recalled = (removed[..., None] * state).sum(-2)
            state = state * s["channels"][:, :, t].exp()[..., None]
            state = state - (rate * removed)[..., None] * recalled[..., None, :]
            key = key * (1 + (rate - 1) * mechanism.gain)
        if "delta" in kind:
            value = s["beta"][:, :, t, None] * (value - (key[..., None] * state).sum(-2))
        state = state + key[..., None] * value[..., None, :]
        out = (query[..., None] * state).sum(-2)
        if kind == "linear":
            out = out / (query * sums).sum(-1, keepdim=True)
        outs.append(out if kind in ("linear", "mamba2", "mamba", "rwkv7") else out * D**-0.5)
    return torch.stack(outs, 2)


@measured()
def forms(kind: str) -> dict[str, float]:
    """How far the implied matrix and the paper's recurrence are from the chunked form, with gradients."""
    q, k, v, s = draw()
    mechanism, leaves = made(kind), [x.requires_grad_() for x in (q, k, v)]
    given = {name: s[source] for name, source in SIGNALS[kind].items()}
    outs = (
        mechanism(q, k, v, CAUSAL, **given),
        mechanism.weights(q, k, CAUSAL, **given) @ v,
        recurrence(kind, q, k, v, s, mechanism),
    )
    found = []
    for out in outs:
        weighting = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
        found.append([out, *torch.autograd.grad((out * weighting).sum(), leaves, retain_graph=True)])
    pairs = [(mine, theirs) for other in found[1:] for mine, theirs in zip(found[0], other, strict=True)]
    return {"apart": max(((a - b).abs() / (1 + b.abs())).max().item() for a, b in pairs)}


def forms_of(kind: str) -> Cell:
    return forms.cell(kind=kind)


@measured()
def step_after(kind: str) -> dict[str, float]:
    """The median time of a decoding step after 65,536 tokens over that after 1,024."""
    mechanism, times = made(kind, torch.float32), {}
    for n in (1024, 65_536):
        q, k, v, s = draw(n, torch.float32)
        given = {name: s[source] for name, source in SIGNALS[kind].items()}
        with torch.no_grad():
            _, state = mechanism.extend(q, k, v, mechanism.start(1), **given)
            one, own = [x[:, :, :1] for x in (q, k, v)], {name: x[:, :, :1] for name, x in given.items()}
            found = []
            for _ in range(300):
                begun = time.perf_counter()
                mechanism.extend(*one, state, **own)
                found.append(time.perf_counter() - begun)
        times[n] = median(found)
    return {"ratio": times[65_536] / times[1024]}


def step_of(kind: str) -> Cell:
    return step_after.cell(kind=kind)


def costs_the_same(found: Figures) -> Finding:
    """A step costs what it costs after 1,024 tokens, within 25%."""
    ratio = found.one("ratio")
    figure = f"a decoding step after 65,536 tokens takes {ratio:.2f} times as long as one after 1,024"
    return Finding.of(figure, 0.75 < ratio < 1.25)


@measured()
def rewritten() -> dict[str, float]:
    """A key written three times: how far the delta rule is from its last value, and linear attention from all three."""
    torch.manual_seed(0)
    keys = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0][:3]
    k, v = keys[[0, 1, 0, 2, 0]][None, None], torch.randn(1, 1, 5, E, dtype=torch.float64)
    q, beta = keys[0].expand(1, 1, 5, D) * D**0.5, torch.ones(1, 1, 5, dtype=torch.float64)
    last = regard.build("deltanet")(q, k, v, CAUSAL, beta=beta)[0, 0, -1]
    summed = regard.build("lightning", slopes=(0.0,))(q * D**-0.5, k, v, CAUSAL)[0, 0, -1]
    return {
        "last": (last - v[0, 0, 4]).abs().max().item(),
        "sum": (summed - v[0, 0, [0, 2, 4]].sum(0)).abs().max().item(),
        "linear": (summed - v[0, 0, 4]).abs().max().item(),
    }


def replaces(found: Figures) -> Finding:
    """The delta rule returns the last value to 1e-9, linear attention the sum."""
    last, total, linear = (found.one(name) for name in ("last", "sum", "linear"))
    figure = (
        f"error of a rewritten key's last value {last:.0e}, of linear attention, which returns the sum, {linear:.1f}"
    )
    return Finding.of(figure, last < 1e-9, total < 1e-9, linear > 1e-2)


@measured(pairs=(4, 8, 16, 32, 64), kind=("lightning", "deltanet"))
def capacity(pairs: int, kind: str) -> dict[str, float]:
    """The relative squared error of reading so many random pairs back from 32 dimensions, 50 draws."""
    d, generator = 32, torch.Generator().manual_seed(pairs)
    k = normalize(torch.randn(50, 1, pairs, d, generator=generator), dim=-1)
    v = torch.randn(50, 1, pairs, 8, generator=generator)
    keys, values = torch.cat([k, torch.zeros_like(k)], 2), torch.cat([v, torch.zeros_like(v)], 2)
    queries, beta = torch.cat([torch.zeros_like(k), k], 2), torch.ones(50, 1, 2 * pairs)
    beta[:, :, pairs:] = 0
    if kind == "deltanet":
        out = regard.build("deltanet")(queries * d**0.5, keys, values, CAUSAL, beta=beta)
    else:
        out = regard.build("lightning", slopes=(0.0,))(queries, keys, values, CAUSAL)
    return {"error": ((out[:, :, pairs:] - v).square().sum() / v.square().sum()).item()}


def stores_better(found: Figures) -> Finding:
    """Errors grow with the pairs, and the delta rule's are the smaller up to as many pairs as dimensions."""
    linear, delta = (found("error", kind=kind) for kind in ("lightning", "deltanet"))
    named = (("added up", linear), ("delta rule", delta))
    shown = "; ".join(f"{name} {listed(row, '.2f')}" for name, row in named)
    grow = linear == sorted(linear) and delta == sorted(delta)
    better = all(a < b for a, b in list(zip(delta, linear, strict=True))[:4])
    return Finding.of(f"relative error at 4 to 64 pairs in 32 dimensions: {shown}", grow, better)


@measured()
def strong_decay() -> dict[str, float]:
    """What is left of 16 pairs after one decay of e^−50, and what the delta rule keeps."""
    q, k, v, _ = draw(17, heads=1)
    decay, beta = torch.zeros(1, 1, 17, dtype=torch.float64), torch.ones(1, 1, 17, dtype=torch.float64)
    decay[..., 16], beta[..., 16] = -50, 0
    gated = regard.build("gated_deltanet")(q, k, v, CAUSAL, log_decay=decay, beta=beta)[0, 0, -1]
    kept = regard.build("deltanet")(q, k, v, CAUSAL, beta=beta)[0, 0, -1]
    return {"gated": gated.abs().max().item(), "delta": kept.abs().max().item()}


def forgets(found: Figures) -> Finding:
    """Under 1e-9 is left, and the delta rule keeps over 1e-2."""
    gated, kept = found.one("gated"), found.one("delta")
    figure = f"after a decay of e^-50 {gated:.0e} is left of 16 pairs, by the delta rule {kept:.2f}"
    return Finding.of(figure, gated < 1e-9, kept > 1e-2)


@measured()
def without_decay() -> dict[str, float]:
    """How far the gated delta rule without decay is from the delta rule."""
    q, k, v, s = draw()
    got = regard.build("gated_deltanet")(q, k, v, CAUSAL, log_decay=torch.zeros_like(s["beta"]), beta=s["beta"])
    return {"apart": (got - regard.build("deltanet")(q, k, v, CAUSAL, beta=s["beta"])).abs().max().item()}


@measured()
def alike() -> dict[str, float]:
    """How far Kimi delta attention with one decay for all channels is from the gated delta rule."""
    q, k, v, s = draw()
    decay = s["log_decay"][..., None].expand_as(k)
    got = regard.build("kimi_delta")(q, k, v, CAUSAL, log_decay=decay, beta=s["beta"])
    want = regard.build("gated_deltanet")(q, k, v, CAUSAL, log_decay=s["log_decay"], beta=s["beta"])
    return {"apart": (got - want).abs().max().item()}


@measured()
def half_of_the_channels() -> dict[str, float]:
    """After a decay of e^−50 in half of the channels: what is left of the pairs there, and the error of the others."""
    k, v = torch.eye(D, dtype=torch.float64)[None, None], torch.randn(1, 1, D, E, dtype=torch.float64)
    k, v = torch.cat([k, 0 * k], dim=2), torch.cat([v, 0 * v], dim=2)
    decay, beta = torch.zeros(1, 1, 2 * D, D, dtype=torch.float64), torch.ones(1, 1, 2 * D, dtype=torch.float64)
    decay[:, :, D, : D // 2] = -50
    out = regard.build("kimi_delta")(k.roll(D, 2) * D**0.5, k, v, CAUSAL, log_decay=decay, beta=beta)[:, :, D:]
    others = out[:, :, D // 2 :] - v[:, :, D // 2 : D]
    return {"left": out[:, :, : D // 2].abs().max().item(), "others": others.abs().max().item()}


def forgets_apart(found: Figures) -> Finding:
    """Nothing is left of the ones, and the others are whole, to 1e-9."""
    left, others = found.one("left"), found.one("others")
    figure = (
        f"after a decay of e^-50 in half of the channels {left:.0e} is left of pairs there, others err by {others:.0e}"
    )
    return Finding.of(figure, left < 1e-9, others < 1e-9)


@measured()
def overflowing() -> dict[str, float | bool]:
    """Gated linear attention in float32 at log decays of −30 a token beside float64, relative."""
    q, k, v, s = draw(331)
    strong = s["channels"] * 30 / s["channels"].abs().mean()
    wanted = regard.build("gla")(q, k, v, CAUSAL, log_decay=strong)
    got = regard.build("gla")(*(x.float() for x in (q, k, v)), CAUSAL, log_decay=strong.float())
    plain = torch.isinf((-strong).float().cumsum(2).exp()).any().item()
    return {"apart": ((got - wanted).abs().max() / wanted.abs().max()).item(), "plain_overflows": bool(plain)}


def is_safe(found: Figures) -> Finding:
    """Within 1e-4 of float64 where the plain form overflows."""
    apart, plain = found.one("apart"), found.one("plain_overflows")
    figure = f"float32 within {apart:.0e} of float64 at log decays of −30 a token, where the plain form overflows"
    return Finding.of(figure, apart < 1e-4, plain)


@measured()
def write_key_removed() -> dict[str, float]:
    """RWKV-7 with κ = k, one decay α and rates α β, beside the gated delta rule of values v / α."""
    q, k, v, s = draw()
    kept = s["log_decay"].clamp(min=-0.6)
    rate = (kept.exp() * s["beta"])[..., None].expand_as(k)
    signals = {"log_decay": kept[..., None].expand_as(k), "removed": 3 * k, "rate": rate}
    got = made("rwkv7")(q * D**-0.5, k, v / kept.exp()[..., None], CAUSAL, **signals)
    want = made("gated_deltanet")(q, k, v, CAUSAL, log_decay=kept, beta=s["beta"])
    return {"apart": (got - want).abs().max().item()}


@measured()
def mixer() -> dict[str, float]:
    """How far the scan inside of Transformers' Mamba mixer, with its own projections around it, is from this one."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    config = MambaConfig(hidden_size=12, state_size=5, num_hidden_layers=1, conv_kernel=3, expand=2, time_step_rank=4)
    theirs: Any = MambaMixer(config, 0).double().eval()
    x = torch.randn(2, 33, 12, dtype=torch.float64)
    with torch.no_grad():
        hidden, gate = theirs.in_proj(x).mT.chunk(2, dim=1)
        hidden = torch.nn.functional.silu(theirs.conv1d(hidden)[..., :33])
        step, b, c = theirs.x_proj(hidden.mT).split([4, 5, 5], dim=-1)
        step = torch.nn.functional.softplus(theirs.dt_proj(step)).mT
        scan: Any = regard.build("mamba", heads=24, head_dim=5).double()
        scan.log_rate.copy_(theirs.A_log)
        q, k = (part[:, None].expand(-1, 24, -1, -1) for part in (c, b))
        out = scan(q, k, hidden[..., None], CAUSAL, step=step)[..., 0] + hidden * theirs.D[:, None]
        got = theirs.out_proj((out * torch.nn.functional.silu(gate)).mT)
        return {"apart": (got - theirs(x)).abs().max().item()}
