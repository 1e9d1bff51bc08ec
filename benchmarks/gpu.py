"""Time on a GPU beside its peers: PyTorch's flash attention, FlexAttention, flash-linear-attention.

    python benchmarks/gpu.py                     # every table, as in docs/gpu.md
    python benchmarks/gpu.py patterns scans      # some of them

Each line is one interleaved run: the median time of a call, and the median ratio to the peer with its quartiles. Inputs
are random, bfloat16 unless said; a training step is forward and backward. What cannot run says why in its line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import regard
from regard.core.layout import Layout
from regard.experiments.timing import Work, interleaved
from regard.patterns import parse_pattern
from regard.probes import Entropy, Received

CUDA = torch.device("cuda")
CAUSAL = Layout(causal=True)
HEADS, DIM = 16, 64


@dataclass(frozen=True)
class Line:
    """One comparison: what runs at what size, ours and the peer's."""

    what: str
    size: str
    peer: str
    mine: Work
    theirs: Work


def drawn(n: int, heads: int = HEADS, dim: int = DIM, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """q, k and v of one sequence."""
    torch.manual_seed(n)
    return [torch.randn(1, heads, n, dim, device=CUDA, dtype=dtype) for _ in range(3)]


def passing(call: Callable[..., Tensor], *tensors: Tensor) -> Work:
    """A forward pass."""
    return torch.no_grad()(lambda: call(*tensors))


def training(call: Callable[..., Tensor], *tensors: Tensor) -> Work:
    """A forward pass and its backward pass."""
    upstream = torch.ones_like(tensors[2])

    def step() -> None:
        leaves = [x.detach().requires_grad_() for x in tensors]
        torch.autograd.grad(call(*leaves), leaves, upstream)

    return step


WAYS: Mapping[str, Callable[..., Work]] = {"forward": passing, "training step": training}
flash = partial(F.scaled_dot_product_attention, is_causal=True)


def patterns() -> Iterator[Line]:
    """Windows beside FlexAttention, compiled, under the same mask, and beside dense causal attention."""
    compiled = torch.compile(flex_attention, dynamic=False)

    def near(b, h, i, j):  # what `create_block_mask` calls
        return (i >= j) & (i - j < 256)

    def sunk(b, h, i, j):
        return (i >= j) & ((i - j < 256) | (j < 64))

    for n in (4096, 16384):
        x = drawn(n)
        for text, shown in (("Causal & Window(256)", near), ("Causal & (Window(256) | Sinks(64))", sunk)):
            mine, mask = (
                regard.build("pattern", of=parse_pattern(text)),
                create_block_mask(shown, None, None, n, n),
            )
            flex = partial(compiled, block_mask=mask)
            for way, run in WAYS.items():
                ours = run(lambda q, k, v, mine=mine: mine(q, k, v, CAUSAL), *x)
                yield Line(f"`{text}`, {way}", f"{n:,}", "FlexAttention, compiled", ours, run(flex, *x))
                yield Line(f"`{text}`, {way}", f"{n:,}", "dense, flash", ours, run(flash, *x))


def signals_of(mechanism, n: int) -> dict[str, Tensor]:
    """Decays and strengths as trained layers have them."""
    found = {}
    for name, spec in mechanism.signals.items():
        noise = torch.randn(1, HEADS, n, *spec.size(DIM, DIM), device=CUDA)
        found[name] = noise.sigmoid() if name == "beta" else -noise.abs() * 0.05
    return found


def scans() -> Iterator[Line]:
    """Recurrent mechanisms, in float32 sums: our kernels, and flash-linear-attention's behind the same call."""
    from fla import ops

    from regard.kernels.scan import fla

    kernels = {"gla": ops.chunk_gla, "gated_deltanet": ops.chunk_gated_delta_rule, "kimi_delta": ops.chunk_kda}
    torch.set_float32_matmul_precision("high")
    handed = fla.usable
    for name, kernel in kernels.items():
        for n in (4096, 32768):
            q, k, v = drawn(n)
            k, mechanism = F.normalize(k, dim=-1), regard.build(name)
            signals = signals_of(mechanism, n)
            decay = next(signal for which, signal in signals.items() if which != "beta")
            given = {"g": decay, "beta": signals.get("beta")}
            turned = {key: x.transpose(1, 2).contiguous() for key, x in given.items() if x is not None}

            def peer(q, k, v, kernel=kernel, turned=turned):
                return kernel(*(x.transpose(1, 2) for x in (q, k, v)), **turned, scale=1.0)[0].transpose(1, 2)

            for way, run in WAYS.items():
                call = run(lambda q, k, v, m=mechanism, s=signals: m(q, k, v, CAUSAL, **s), q, k, v)

                def own(call=call):
                    fla.usable = lambda state: False
                    call()
                    fla.usable = handed

                theirs = run(peer, q, k, v)
                size, what = f"{n:,}", "flash-linear-attention's kernel, bfloat16"
                yield Line(f"`{name}`, {way}", size, what, call, theirs)
                yield Line(f"`{name}`, our march, {way}", size, what, own, theirs)
    torch.set_float32_matmul_precision("highest")


def routed() -> Iterator[Line]:
    """Chosen blocks: prefill, training and one token of decoding, beside dense causal attention."""
    for n in (8192, 16384, 32768, 65536):
        x = drawn(n)
        for text, given in (("moba", {"block": 256, "budget": 3}), ("moba", {"block": 512, "budget": 8})):
            mine, label = regard.build(text, **given), f"`{text}` of {given['budget']} blocks of {given['block']}"
            for way, run in WAYS.items():
                ours = run(lambda q, k, v, mine=mine: mine(q, k, v, CAUSAL), *x)
                yield Line(f"{label}, {way}", f"{n:,}", "dense, flash", ours, run(flash, *x))
        chosen, dense = regard.build("routed", score="middle", block=16, budget=128), regard.build("softmax")
        label = "`routed`, 128 blocks of 16, a token of decoding"
        yield Line(label, f"{n:,}", "softmax, a token of decoding", one_more(chosen, *x), one_more(dense, *x))


@torch.no_grad()
def one_more(mechanism, q: Tensor, k: Tensor, v: Tensor) -> Work:
    """A token behind a state that holds all others."""
    state = mechanism.start(1, device=CUDA, dtype=q.dtype)
    for some in torch.arange(q.shape[2], device=CUDA).split(4096):
        _, state = mechanism.extend(*(x[:, :, some] for x in (q, k, v)), state)
    last = [x[:, :, -1:] for x in (q, k, v)]
    return torch.no_grad()(lambda: mechanism.extend(*last, state))


def language_model(layers: int = 30) -> nn.Module:
    """The shape of SmolLM2-135M, untrained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=49152, max_position_embeddings=65536, **sizes)
    return LlamaForCausalLM(config).to(CUDA, torch.bfloat16).eval()


def models() -> Iterator[Line]:
    """Verbs on a language model of SmolLM2-135M's shape, beside the model alone and beside maps formed whole."""
    model = language_model()

    @torch.no_grad()
    def plain(ids):
        model(ids, logits_to_keep=1)

    @torch.no_grad()
    def watched(ids):
        with regard.watch(model, probes=[Entropy(), Received()]):
            model(ids, logits_to_keep=1)

    @torch.no_grad()
    def whole(ids):
        model.set_attn_implementation("eager")
        maps = model(ids, logits_to_keep=1, output_attentions=True).attentions
        for weights in maps:
            weights.float().mul(weights.float().clamp(min=1e-12).log()).sum(-1).neg()
            weights.float().mean(-2)
        model.set_attn_implementation("sdpa")

    peers = {"the model alone": plain, "maps formed whole (eager)": whole}
    for n in (2048, 8192):
        ids = torch.randint(0, 49152, (1, n), device=CUDA)
        for peer, work in peers.items():
            what = "`watch`: entropy and received mass"
            yield Line(what, f"{n:,}", peer, partial(watched, ids), partial(work, ids))
    for n in (8192, 32768):
        ids = torch.randint(0, 49152, (1, n), device=CUDA)
        ours, theirs = (decoding(model, ids, policy) for policy in ("snapkv", None))
        yield Line("64 tokens after the prompt, `snapkv` keeps 512", f"{n:,}", "full cache", ours, theirs)


def decoding(model, ids: Tensor, policy: str | None) -> Work:
    """Tokens one by one behind a prompt that is read once, by a copy of the model that stays compressed."""
    from transformers import DynamicCache

    model, cache, held = deepcopy(model), DynamicCache(), ExitStack()
    if policy:
        held.enter_context(regard.compress(model, policy, budget=512))
    with torch.no_grad():
        model(ids, past_key_values=cache, logits_to_keep=1)

    @torch.no_grad()
    def run(held=held):
        for _ in range(64):
            model(ids[:, -1:], past_key_values=cache, logits_to_keep=1)

    return run


TABLES = {"patterns": patterns, "scans": scans, "routed": routed, "models": models}


def row(line: Line, seconds: float) -> str:
    """The line as a row of Markdown."""
    start = f"| {line.what} | {line.size} | {line.peer} |"
    try:
        found = interleaved(line.mine, line.theirs, CUDA, seconds)
    except Exception as error:
        torch.cuda.empty_cache()
        return f"{start} {type(error).__name__}: {str(error).splitlines()[0][:120]} | | |"
    ratio = f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"
    return f"{start} {1e3 * found.seconds:.2f} | {1e3 * found.baseline:.2f} | {ratio} |"


def main(
    names: Annotated[list[str] | None, typer.Argument(help=", ".join(TABLES))] = None,
    seconds: Annotated[float, typer.Option(help="at most for each line")] = 0.5,
) -> None:
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    for name in names or TABLES:
        print(f"\n## {name}\n\n| what | tokens | beside | ms | peer's ms | ratio |\n|---|---|---|---|---|---|")
        for line in TABLES[name]():
            print(row(line, seconds), flush=True)


if __name__ == "__main__":
    typer.run(main)
