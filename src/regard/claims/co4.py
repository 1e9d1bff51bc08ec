"""Co4: steps that it needs to tell digits, beside attention of its size, and its cost."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.digits import digits
from regard.networks.latents.co4 import Co4, Modulated
from regard.train.fit import Recipe, Step, fit

TARGET, EVERY = 0.9, 20


class Heads(nn.Module):
    """Softmax attention of four heads and its output's projection: what an attention network has for a mixer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 4, -1)).movedim(2, 0).transpose(2, 3)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@measured(model=("co4", "attention"), rate=(3e-3, 1e-2, 3e-2), seed=range(3), steps=[600])
def steps_to_target(model: str, rate: float, seed: int, steps: int) -> dict[str, int]:
    """Steps after which 90% of unseen digits are told apart, looked at every 20; one more than all where never."""
    images, labels, unseen, answers = digits(seed)
    net = Co4(8, 1, 1, 10, 32, mixer=None if model == "co4" else Heads, seed=seed)
    found = steps + 1

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        rows = torch.randint(len(labels), (32,), generator=generator)
        return F.cross_entropy(ready(images[rows]), labels[rows])

    def reached(step: Step) -> bool:
        nonlocal found
        if step.number % EVERY == 0:
            with torch.no_grad():
                if (net(unseen).argmax(1) == answers).float().mean().item() >= TARGET:
                    found = step.number
        return found == step.number

    fit(net, loss, Recipe(steps, rate=rate, seed=seed), until=reached)
    return {"needed": found, "parameters": net.parameter_count}


def needs_half(found: Figures) -> Finding:
    """In the mean of the seeds, each at the rate at which it needs the fewest."""
    best = {}
    for model in ("co4", "attention"):
        by_rate = found.by("rate", "needed", model=model)
        best[model] = min(by_rate.values(), key=sum)
    own, other = best["co4"], best["attention"]
    figure = f"steps to {TARGET:.0%} of digits {listed(own, 'g')}, attention {listed(other, 'g')}"
    return Finding.of(figure, 2 * sum(own) <= sum(other))


@measured(n=[4096])
def doubled(n: int) -> dict[str, float]:
    """FLOPs of the mixer on twice as many tokens, by those on n."""
    mixer = Modulated(64)
    return {"ratio": mixer.flops(2 * n) / mixer.flops(n)}
