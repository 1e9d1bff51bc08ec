"""What the processes of a test of `regard.parallel` run, each a rank of a gloo group; importable by all of them."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import regard
from regard.core.layout import Layout
from regard.core.mechanism import repeat_heads
from regard.parallel import Distributed, Group, Parallel, Plan, attend, sum_gradients
from regard.parallel.state import States

WORLD = 4
WAIT = 900.0  # seconds: an end for what hangs, out of reach of what is merely slow
N, M, H, G, D, E = 23, 31, 4, 2, 5, 7
KINDS: dict[str, Any] = {
    "ring": "ring",
    "gather": "gather",
    "heads": "heads",
    "scores": "scores",
    "linear": States("linear"),
    "gla": States("gla"),
    "gated_deltanet": States("gated_deltanet"),
}
PLANS = {
    "one": Plan.even(N, 1),
    "ragged": Plan.sized([17, 6]),
    "packed zigzag": Plan.zigzag(N, 3, (0, 5, 6, 17)),
    "an empty one": Plan.sized([7, 0, 11, 5]),
    "packed": Plan.sized([3, 8, 0, 12], (0, 3, 12)),
}


def launch(run: Callable[[int], dict[str, float | str]]) -> list[dict[str, float | str]]:
    """What ``run(rank)`` gives in each of four processes of one thread, or the errors that they ended with."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ranks", "transformers.models.llama.modeling_llama"])
    found, folder = context.Queue(), Path(tempfile.mkdtemp())
    processes = [context.Process(target=work, args=(run, rank, folder, found)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    came = dict(found.get(timeout=WAIT) for _ in processes)
    for process in processes:
        process.join()
    return [came[rank] for rank in range(WORLD)]


def work(run: Callable[[int], Any], rank: int, folder: Path, found: Any) -> None:
    """One process."""
    torch.set_num_threads(1)
    where = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", where, timedelta(seconds=WAIT), WORLD, rank)
    try:
        found.put((rank, run(rank)))
    except BaseException:
        found.put((rank, {"failed": traceback.format_exc()}))
    dist.destroy_process_group()


def ranks_of(size: int) -> Group | None:
    """The first so many ranks; None where this process is not one of them."""
    group = dist.new_group(list(range(size)), timedelta(seconds=WAIT))
    return Distributed(group, WAIT) if dist.get_rank() < size else None


def drawn(kernel: Any, n: int, m: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, signals and the gradient that comes in, of the whole."""
    noise = torch.Generator().manual_seed(11)
    sizes = [(1, H, n, D), (1, G, m, D), (1, G, m, E)]
    signals = getattr(kernel, "signals", {})
    found = [torch.randn(size, generator=noise, dtype=torch.float64) for size in sizes]
    for signal in signals.values():
        size = (1, signal.rows(H, G), m, *signal.size(D, E))
        found.append(signal.within(torch.randn(size, generator=noise, dtype=torch.float64)))
    return [x.to(dtype) for x in [*found, torch.randn(1, H, n, E, generator=noise, dtype=torch.float64)]]


def apart(kernel: Any, plan: Plan, queries: Plan, causal: bool, dtype: torch.dtype, group: Group) -> float:
    """The largest difference between this rank's part of outputs and gradients and one process's in float64."""
    signals = list(getattr(kernel, "signals", {}))
    *given, upstream = drawn(kernel, queries.length, plan.length, dtype)
    rank, plans = group.rank, [queries, *[plan] * (len(given) - 1)]
    own = [p.split(x, 2, rank).requires_grad_() for x, p in zip(given, plans, strict=True)]
    named = dict(zip(signals, own[3:], strict=True))
    out = attend(*own[:3], plan, kernel, causal=causal, queries=queries, group=group, **named)
    slopes = torch.autograd.grad(out, own, queries.split(upstream, 2, rank))

    whole = [x.double().requires_grad_() for x in given]
    packed = torch.searchsorted(torch.tensor(plan.borders), torch.arange(plan.length), right=True)[None]
    layout = Layout(causal=causal, segments=packed if len(plan.borders) > 1 else None)
    mechanism = kernel.mechanism if isinstance(kernel, States) else regard.build("softmax")
    a = mechanism.weights(whole[0], whole[1], layout, **dict(zip(signals, whole[3:], strict=True)))
    want = a @ repeat_heads(whole[2], H)
    wanted = torch.autograd.grad(want, whole, upstream.double())
    pairs = zip([out, *slopes], [want, *wanted], [queries, *plans], strict=True)
    worst = [((got - p.split(x, 2, rank)).abs().max() / x.abs().max()).item() for got, x, p in pairs if got.numel()]
    return max(worst, default=0.0)


def equal(rank: int) -> dict[str, float | str]:
    """Every kernel on every plan against one process, by the name of the case."""
    found: dict[str, float | str] = {}
    groups = {size: ranks_of(size) for size in range(1, WORLD + 1)}
    for name, plan in PLANS.items():
        group = groups[plan.ranks]
        if group is None:
            continue
        for how, kernel in KINDS.items():
            for causal in (True, False) if how not in ("gla", "gated_deltanet") else (True,):
                found[f"{how}, {name}, causal={causal}"] = apart(kernel, plan, plan, causal, torch.float64, group)
    three = groups[3]
    if three is not None:
        plan = PLANS["packed zigzag"]
        for how in KINDS:
            found[f"{how}, float32"] = apart(KINDS[how], plan, plan, True, torch.float32, three)
            found[f"{how}, bfloat16"] = apart(KINDS[how], plan, plan, True, torch.bfloat16, three)
        for how in ("ring", "gather", "heads", "scores"):
            for causal in (True, False):
                keys, queries = Plan.sized([M - 9, 0, 9]), Plan.sized([5, 7, 0])
                found[f"{how}, cross, causal={causal}"] = apart(how, keys, queries, causal, torch.float64, three)
    return found


def llama(layers: int = 2) -> Any:
    """A tiny Llama in float64, the same in every process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=53, num_hidden_layers=layers, **sizes)).double()


def hosted(rank: int) -> dict[str, float | str]:
    """A step of a Llama whose tokens four ranks hold, and its generation from a cache that they share, against one."""
    group, found = Distributed(limit=WAIT), {}
    ids = torch.randint(53, (1, N), generator=torch.Generator().manual_seed(1))
    whole = llama()
    logits = whole(ids).logits
    F.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    for how, plan in (
        ("ring", Plan.zigzag(N, WORLD)),
        ("heads", Plan.sized([9, 1, 3, 10])),
        ("gather", Plan.even(N, 4)),
    ):
        model = llama()
        own, places = plan.split(ids, 1, rank), plan.tokens(rank)
        labels = F.pad(ids, (0, 1), value=-100)[0, places + 1]
        with regard.attach(model, Parallel(plan, how)):
            there = torch.ones_like(own)
            got = model(own, attention_mask=there, position_ids=plan.positions(rank)[None], use_cache=False).logits
            (F.cross_entropy(got[0], labels, reduction="sum") / (N - 1)).backward()
        sum_gradients(model, group)
        found[f"logits, {how}"] = far(got, plan.split(logits, 1, rank))
        found[f"gradients, {how}"] = max(
            far(p.grad, w.grad) for p, w in zip(model.parameters(), whole.parameters(), strict=True)
        )
        optimiser, plain = (torch.optim.SGD(m.parameters(), 0.1) for m in (model, llama()))
        optimiser.step()
        for parameter, other in zip(plain.param_groups[0]["params"], whole.parameters(), strict=True):
            parameter.grad = other.grad
        plain.step()
        stepped = zip(optimiser.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True)
        found[f"step, {how}"] = max(far(p, w) for p, w in stepped)
    model = whole.eval()
    settings = {"max_new_tokens": 9, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    want = model.generate(ids, **settings)
    with regard.attach(model, Parallel(Plan.even(0, WORLD))):
        got = model.generate(ids, **settings)
    found["generated"] = float((got != want).sum())
    return found


def far(got: Tensor, want: Tensor) -> float:
    """The largest difference, by the largest number; 0 where there is nothing."""
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item() if got.numel() else 0.0


class Stack(nn.Module):
    """Two layers of a hybrid: linear attention, then softmax, each with a residual, on hidden states of one head."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.maps = nn.ModuleList([nn.Linear(12, 36), nn.Linear(12, 36)]).double()
        self.mechanisms = nn.ModuleList([first, second])

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        for project, mechanism in zip(self.maps, self.mechanisms, strict=True):
            q, k, v = project(x).unflatten(-1, (3, 2, 6)).movedim(-3, 0).transpose(-3, -2)
            x = x + mechanism(q, k, v, layout).transpose(1, 2).flatten(2)
        return x


def hybrid(rank: int) -> dict[str, float | str]:
    """A stack of a linear and a softmax layer, packed, against one process."""
    plan, layout = Plan.zigzag(N, WORLD, (0, 6, 14)), Layout(causal=True)
    x = torch.randn(1, N, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    segments = torch.searchsorted(torch.tensor(plan.borders), torch.arange(N), right=True)[None]
    whole = Stack(regard.build("linear"), regard.build("softmax"))
    want = whole(x, Layout(causal=True, segments=segments))
    want.square().sum().backward()
    shared = Stack(Parallel(plan, "state"), Parallel(plan, "ring"))
    got = shared(plan.split(x, 1, rank), layout)
    got.square().sum().backward()
    sum_gradients(shared, Distributed(limit=WAIT))
    pairs = zip(shared.maps.parameters(), whole.maps.parameters(), strict=True)
    return {
        "hybrid, output": far(got, plan.split(want, 1, rank)),
        "hybrid, gradients": max(far(p.grad, w.grad) for p, w in pairs),
    }


def wrong_call(rank: int, group: Group) -> str:
    """What a rank is told where rank 2 holds a token less than the plan says."""
    plan = Plan.even(N, WORLD)
    *given, _ = drawn("ring", N, N, torch.float64)
    q, k, v = (plan.split(x, 2, rank) for x in given)
    try:
        attend(q, k[:, :, 1:] if rank == 2 else k, v[:, :, 1:] if rank == 2 else v, plan, group=group)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def lost(rank: int) -> dict[str, float | str]:
    """What ranks are told where rank 2 takes part in one call, then goes silent for longer than they wait."""
    group = Distributed(limit=WAIT)
    found: dict[str, float | str] = {"wrong call": wrong_call(rank, group)}
    plan = Plan.even(N, WORLD)
    *given, _ = drawn("ring", N, N, torch.float64)
    q, k, v = (plan.split(x, 2, rank) for x in given)
    attend(q, k, v, plan, group=group)  # the group goes on after a call that did not fit
    if rank == 2:
        time.sleep(2)
        return found | {"silent": ""}
    try:
        attend(q, k, v, plan, group=Distributed(limit=0.5), check=False)
    except RuntimeError:
        return found | {"silent": "RuntimeError"}
    return found | {"silent": "gave an output"}


def everything(rank: int) -> dict[str, float | str]:
    """All of it in one world, the failures last, as they end it."""
    return equal(rank) | hosted(rank) | hybrid(rank) | lost(rank)
