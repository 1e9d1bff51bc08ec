"""Attention that is dense where it matters: all-or-here, and the delta correction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.hosts import small
from regard.tasks import Recall, accuracy, plain_encoder, word_ids

CAUSAL = Layout(causal=True)


def draw(n: int, heads: int = 3, d: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, heads, n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    return q, k, v


@measured()
def both_ends() -> dict[str, float]:
    """How far all-or-here is from softmax attention with all queries routed, and from the window with none."""
    q, k, v = draw(61)
    worst, mechanism = 0.0, regard.build("aha", of="window(size=7)")
    for route, want in ((1.0, regard.build("softmax")), (0.0, regard.build("window", size=7))):
        got = mechanism(q, k, v, CAUSAL, route=torch.full((2, 3, 61), route))
        worst = max(worst, (got - want(q, k, v, CAUSAL)).abs().max().item())
    return {"apart": worst}


@measured(share=(0.0, 0.07, 1.0))
def routed(share: float) -> dict[str, int]:
    """FLOPs without gradients, with this share of the queries routed to all keys."""
    q, k, v = (torch.randn(1, 2, 1021, 16) for _ in range(3))
    route = (torch.rand(1, 2, 1021, generator=torch.Generator().manual_seed(3)) < share).float()
    mechanism = regard.build("aha", of="window(size=32)")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # which knows the kernels imported by then
        mechanism(q, k, v, CAUSAL, route=route)
    return {"flops": counter.get_total_flops()}


def costs_its_share(found: Figures) -> Finding:
    """7% of the queries cost at most 15% of all-key attention."""
    none, some, every = found("flops")
    cost = (some - none) / (every - none)
    return Finding.of(f"7% of the queries routed cost {cost:.0%} of all-key attention", cost < 0.15)


@measured()
def gamma_one() -> dict[str, float]:
    """How far the corrected output with γ = 1 is from dense attention."""
    q, k, v = draw(97)
    got = regard.build("delta", of="window(size=3)", gamma=1)(q, k, v, CAUSAL)
    return {"apart": (got - regard.build("softmax")(q, k, v, CAUSAL)).abs().max().item()}


@measured()
def dense_rows() -> dict[str, float]:
    """FLOPs of the dense rows in units of 1/γ of dense attention's, at 8,192 tokens and γ = 64."""
    shape, gamma = regard.Shape(8192, head_dim=64), 64
    corrected = regard.build("delta", of="window(size=128, sinks=4)", gamma=gamma).cost(shape, CAUSAL).flops
    sparse = regard.build("window", size=128, sinks=4).cost(shape, CAUSAL).flops
    return {"share": (corrected - sparse) / regard.build("softmax").cost(shape, CAUSAL).flops * gamma}


def is_one_in_gamma(found: Figures) -> Finding:
    """To 10%."""
    share = found.one("share")
    return Finding.of(f"the dense rows cost {share:.2f}/γ of dense attention", abs(share - 1) < 0.1)


WINDOW = "window(size=64, sinks=4)"
ARMS = {
    "dense": "softmax",
    "window": WINDOW,
    "corrected": f"delta(of='{WINDOW}', gamma=16)",
    "tail": f"delta(of='{WINDOW}', gamma={1 << 30}, tail=64)",
    "both": f"delta(of='{WINDOW}', gamma=16, tail=64)",
}


@measured(arm=tuple(ARMS))
def in_a_model(arm: str) -> dict[str, float]:
    """In regard-tiny: recall at 1,024 tokens, and the mean cosine of last states with those of dense attention."""
    model, tokenizer = small.load("tiny")
    encode, bos = plain_encoder(tokenizer), tokenizer.bos_token_id
    task = Recall(word_ids(tokenizer), 8, 0.5, tuple(encode(" =")), tuple(encode("\n")), bos)
    text = torch.tensor(tokenizer(small.SAMPLE.read_text(), add_special_tokens=False)["input_ids"])
    ids = torch.cat([torch.tensor([bos]), text[:1023]])[None]

    def states() -> Tensor:
        return model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]

    with torch.no_grad():
        dense = states()
        with regard.swap(model, ARMS[arm]):
            near = torch.cosine_similarity(states(), dense, dim=-1).mean().item()
            return {"recall": accuracy(model, task, [1024], samples=8)[1024], "cosine": near}


def wins_half_back(found: Figures) -> Finding:
    """The correction wins back at least half of the recall that sinks and window lose."""
    recall = {arm: found.one("recall", arm=arm) for arm in ARMS}
    cosine = [found.one("cosine", arm=arm) for arm in ("window", "corrected")]
    won = (recall["corrected"] - recall["window"]) / (recall["dense"] - recall["window"])
    figure = (
        f"recall at 1,024 tokens: dense {recall['dense']:.1%}, sinks and window {recall['window']:.1%}, corrected with "
        f"γ = 16 {recall['corrected']:.1%}, with a dense tail of 64 {recall['tail']:.1%}; cosine with dense states "
        f"{cosine[0]:.3f}, corrected {cosine[1]:.3f}"
    )
    return Finding.of(figure, won >= 0.5)
