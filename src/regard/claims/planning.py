"""What plans claim: rooflines equal counted einsums, calibrated steps are predicted, cascades pass 3, 2, 1 times."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.compare import cab
from regard.core.build import build_for
from regard.core.mechanism import Mechanism
from regard.plan.device import DEVICES
from regard.plan.kinetics import at_budget, calibrate, frontier, kinetics
from regard.plan.measure import reference, seconds_of_steps, shape_of
from regard.plan.mixers import GroupedAttention, LatentAttention
from regard.plan.published import MODELS
from regard.plan.roofline import Network
from regard.studies import flat
from regard.studies.fusemax import DEFERRED, NAIVE, RUNNING, Array, attention_by

CASCADES = {"naive": NAIVE, "deferred": DEFERRED, "running": RUNNING}


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def latent_step(a: LatentAttention, batch: int, context: int) -> tuple[int, int, int]:
    """The einsums of one step on meta tensors: FLOPs, numbers of the weights, numbers of the cache."""
    x, h = meta(batch, a.width), a.heads
    down, up = meta(a.width, a.query_rank), meta(a.query_rank, h * (a.plain + a.rotary))
    latent, out = meta(a.width, a.rank + a.rotary), meta(h * a.value, a.width)
    key_up, value_up = meta(h, a.plain, a.rank), meta(h, a.rank, a.value)
    weights = [down, up, latent, out, key_up, value_up]
    with FlopCounterMode(display=False) as counter:
        q = ((x @ down) @ up).view(batch, h, a.plain + a.rotary)
        _ = x @ latent
        plain, rotary = q.split([a.plain, a.rotary], -1)
        if a.form == "absorbed":
            cache = [meta(batch, context, a.rank + a.rotary)]
            absorbed = torch.einsum("bhp,hpr->bhr", plain, key_up)
            scores = torch.einsum("bhr,bmr->bhm", torch.cat([absorbed, rotary], -1), cache[0])
            mixed = torch.einsum("bhm,bmr->bhr", scores, cache[0][..., : a.rank])
            value = torch.einsum("bhr,hrv->bhv", mixed, value_up)
        else:
            if a.form == "cached":
                cache = [meta(batch, h, context, a.plain + a.rotary), meta(batch, h, context, a.value)]
                new = meta(batch, a.rank)
                for up, product in ((key_up, "br,hpr->bhp"), (value_up, "br,hrv->bhv")):
                    torch.einsum(product, new, up)
                keys, values = cache
            else:
                cache = [meta(batch, context, a.rank + a.rotary)]
                made = torch.einsum("bmr,hpr->bhmp", cache[0][..., : a.rank], key_up)
                shared = cache[0][:, None, :, a.rank :].expand(-1, h, -1, -1)
                keys = torch.cat([made, shared], -1)
                values = torch.einsum("bmr,hrv->bhmv", cache[0][..., : a.rank], value_up)
            scores = torch.einsum("bhd,bhmd->bhm", q, keys)
            value = torch.einsum("bhm,bhmv->bhv", scores, values)
        _ = value.reshape(batch, -1) @ out
    return counter.get_total_flops(), sum(w.numel() for w in weights), sum(c.numel() for c in cache)


@measured(form=("cached", "expanded", "absorbed"), batch=(1, 3))
def einsums(form: str, batch: int) -> dict[str, bool]:
    """Whether FLOPs, weight bytes and cache bytes are those of the einsums."""
    attention = LatentAttention(96, 8, 24, 16, 12, 4, 10, form)  # pyright: ignore
    context = 64 if batch == 1 else 1000
    work = attention.projections(batch, 2) + attention.core(batch, context, 2)
    flops, weights, cache = latent_step(attention, batch, context)
    return {"exact": (work.flops, work.weights, work.cache) == (flops, 2 * weights, 2 * cache)}


@measured()
def intensities() -> dict[str, float | bool]:
    """FLOP a byte of absorbed latent and of multi-head attention, and whether an expert's grows with its tokens."""
    absorbed: float = MODELS["deepseek-v3"].mixers[0][1].core(1, 4096, 2).intensity
    plain = GroupedAttention(7168, 128, 128, 128).core(1, 4096, 2).intensity
    experts = Network(7168, 2048, 256, 8, shared=2048)
    steps = [(experts.expert_step(batch, 2).intensity, batch * 8 / 256) for batch in (32, 320, 3200)]
    return {"absorbed": absorbed, "plain": plain, "experts": all(abs(a / b - 1) < 1e-6 for a, b in steps)}


def is_over_100_times(found: Figures) -> Finding:
    """Over 100 times, and an expert's in proportion."""
    absorbed, plain, experts = (found.one(name) for name in ("absorbed", "plain", "experts"))
    figure = f"intensity {absorbed:.1f} against {plain:.1f} FLOP a byte, {absorbed / plain:.0f} times"
    return Finding.of(figure, plain == 1, absorbed / plain >= 100, experts)


@measured(tokens=(256, 4096, 65536))
def share(tokens: int) -> dict[str, float]:
    """The share of the cost of decoding so many tokens that is due to the context."""
    return {"share": kinetics(MODELS["qwen3-8b"], DEVICES["b200"], 1024, tokens, 16, 64).attention_share}


def grows(found: Figures) -> Finding:
    """With the length, to over 90%."""
    shares = found("share")
    figure = f"attention's share {listed(shares, '.0%')} of decoding 256, 4,096 and 65,536 tokens"
    return Finding.of(figure, shares == sorted(shares), shares[-1] > 0.9)


def assumed_rate(name: str, answer: int) -> float:
    """An assumed chance of a right answer: grows with the model's size and, saturating, with the answer's length."""
    size = MODELS[name].parameters / 1e9
    return 0.5 * (1 - math.exp(-((size / 8) ** 0.4))) * (1 - math.exp(-answer / 8192))


@measured()
def frontiers() -> dict[str, float | bool]:
    """With reads capped at 1,024 tokens: whether no budget solves less, and the cost of the dense one's best rate."""
    models = {name: MODELS[name] for name in MODELS if name.startswith("qwen3")}
    sparse = {name: model.sparse(1024) for name, model in models.items()}
    answers, samples = [2**i for i in range(9, 16)], [2**i for i in range(5)]
    dense, capped = (
        frontier(which, DEVICES["b200"], 512, answers, samples, assumed_rate, batch=256) for which in (models, sparse)
    )
    shares = [min(other.cost for other in capped if other.rate >= plan.rate) / plan.cost for plan in dense]
    above = all(at_budget(capped, plan.cost) >= plan.rate for plan in dense)
    return {"above": above, "most": max(shares), "last": shares[-1]}


def lies_above(found: Figures) -> Finding:
    """Nowhere dearer, at the top less than half."""
    above, most, last = (found.one(name) for name in ("above", "most", "last"))
    figure = f"the dense frontier's best rate at {last:.2f} of its cost, for assumed solve rates"
    return Finding.of(figure, above, most <= 1, last < 0.5)


@quick(longest=[512], rounds=[2])
@measured(longest=[4096], rounds=[9])
def calibrated(longest: int, rounds: int) -> dict[str, float]:
    """The largest relative error of 11 predicted decoding steps, after calibration on five others: batches of 1 to 8
    after an eighth of the longest context to all of it, measured in turn."""
    model = reference()
    shape, batches, contexts = shape_of(model), (1, 2, 4, 8), [longest // part for part in (8, 4, 2, 1)]
    seconds = seconds_of_steps(model, batches, contexts, rounds)
    work = {place: shape.step(place[0], place[1] + 1) for place in seconds}
    corners = itertools.product((batches[0], batches[-1]), (contexts[0], contexts[-1]))
    chosen = {*corners, (batches[2], contexts[2])}
    fitted = calibrate((work[place], seconds[place]) for place in chosen)
    return {"error": max(abs(fitted.seconds(work[p]) / seconds[p] - 1) for p in seconds if p not in chosen)}


@measured(cascade=tuple(CASCADES))
def passes(cascade: str) -> dict[str, float | int]:
    """How often a cascade passes over the keys, and how far it is, run as written, from softmax attention."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, d, dtype=torch.float64) for n, d in ((7, 5), (48, 5), (48, 3)))
    apart = attention_by(CASCADES[cascade], q, k, v) - torch.softmax(q @ k.mT, -1) @ v
    return {"passes": CASCADES[cascade].passes("m"), "apart": apart.abs().max().item()}


def are_three_two_one(found: Figures) -> Finding:
    """3, 2 and 1 times, softmax to 1e-12."""
    counts, worst = found("passes"), max(found("apart"))
    return Finding.of(
        f"passes {listed(counts, 'd')}; equal to softmax to {worst:.0e}", counts == [3, 2, 1], worst < 1e-12
    )


@measured(cascade=("naive", "running"))
def array(cascade: str) -> dict[str, float]:
    """Modelled utilisation of a two-dimensional array at 1M keys, cycles, and growth of its buffer from 16k."""
    short, long = (Array().model(CASCADES[cascade], n, n, 64, 64) for n in (1 << 14, 1 << 20))
    return {"busy": long.utilisation, "cycles": long.cycles, "growth": long.buffer / short.buffer}


def stays_busy(found: Figures) -> Finding:
    """One pass at least 95% with a buffer that does not grow; three passes need more cycles and a growing one."""
    naive, running = found.rows
    figure = f"modelled utilisation {running['busy']:.1%} at 1M keys, in three passes {naive['busy']:.1%}"
    one = running["busy"] >= 0.95 and running["growth"] == 1
    return Finding.of(figure, one, naive["growth"] > 1, naive["cycles"] > running["cycles"])


@measured(model=tuple(flat.MODELS), n=tuple(1 << power for power in (10, 12, 14, 16, 18, 20)))
def beside_flat(model: str, n: int) -> dict[str, float]:
    """Modelled seconds of the attention of a layer on FLAT and on FuseMax, and of the products beside it."""
    task = flat.published(model, n)
    return {
        "flat": flat.flat(task).seconds(flat.FLAT, task),
        "fusemax": flat.fusemax(task)[0],
        "linear": flat.FLAT.linear(task),
    }


def is_faster_by_as_much(found: Figures) -> Finding:
    """The published means of four models and six lengths, 6.7 and 5.3, to the digit that is printed."""
    attention = [row["flat"] / row["fusemax"] for row in found.rows]
    whole = [(row["flat"] + row["linear"]) / (row["fusemax"] + row["linear"]) for row in found.rows]
    means = [sum(ratios) / len(ratios) for ratios in (attention, whole)]
    figure = f"modelled: {means[0]:.2f} times in attention, {means[1]:.2f} times in whole networks, on average"
    return Finding.of(figure, round(means[0], 1) == 6.7, round(means[1], 1) == 5.3)


@measured()
def leaks() -> dict[str, int]:
    """Of all causal mechanisms, how many let a gradient of an output reach later inputs."""
    found = 0
    things = [
        e for e in regard.entries(kind="mechanism") if isinstance(e.thing, type) and issubclass(e.thing, Mechanism)
    ]
    made = [build_for({"heads": 2, "head_dim": 6}, entry.name) for entry in things]
    causal = [mechanism for mechanism in made if mechanism.traits.causal]
    for mechanism in causal:
        found += cab.leak(mechanism) != 0
    return {"leaks": found, "mechanisms": len(causal)}


def nothing_leaks(found: Figures) -> Finding:
    """None."""
    leaking, count = found.one("leaks"), found.one("mechanisms")
    return Finding.of(f"{leaking} of {count} causal mechanisms leak", leaking == 0)
