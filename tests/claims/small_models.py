"""Small language models, trained alike at equal parameters, and what is read off them."""

from dataclasses import dataclass
from functools import cache
from statistics import median

import torch

from claims.on_source import VOCABULARY, characters, held_out_loss, windows
from regard.core.layout import Layout
from regard.networks.lm import LM, Config
from regard.train.fit import Recipe, groups

SEEDS, STEPS, LENGTH, SIZE = 3, 400, 64, 16


@dataclass(frozen=True)
class Trained:
    """One trained model: held-out nats a character, and the gradient's norm at each step before it was clipped."""

    model: LM
    loss: float
    norms: list[float]

    @property
    def spike(self) -> float:
        """The largest norm after a quarter of the steps, over their median."""
        late = self.norms[len(self.norms) // 4 :]
        return max(late) / median(late)


@cache
def trained(layers, projection="grouped", seed=0, rate=3e-3, kv_heads=None):
    """Two layers or more of width 64 and four heads; all have the parameters of softmax's, by their inner width."""
    config = Config(VOCABULARY, 64, layers, heads=4, kv_heads=kv_heads, projection=projection)
    plain = LM(Config(VOCABULARY, 64, f"softmax*{config.depth}", heads=4), 0).parameter_count
    model = LM(config.fitted(plain, lambda sizes: LM(sizes, 0).parameter_count), seed)
    recipe, codes, norms = Recipe(STEPS, rate, seed=seed), characters(False), []
    optimiser = torch.optim.AdamW(groups(model, recipe.decay), betas=(0.9, 0.95))
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimiser.zero_grad()
        model.loss(windows(codes, SIZE, LENGTH, recipe.generator(step))).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip).item())
        optimiser.step()
    return Trained(model.eval(), held_out_loss(model), norms)


def all_seeds(layers, projection="grouped", **given):
    return [trained(layers, projection, seed, **given) for seed in range(SEEDS)]


@torch.no_grad()
def inside(model, ids):
    """For each layer ``(A (b, h, n, n), the attention, its hidden states)``."""
    calls, found = [], []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda module, given: calls.append((module, given[0])))
        for layer in model.layers
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    for attention, x in calls:
        q, k, _, signals = attention.inputs(x, Layout(causal=True))
        found.append((attention.mechanism.weights(q, k, Layout(causal=True), **signals), attention, x))
    return found


def held_out(count=64, length=LENGTH):
    return windows(characters(True), count, length, torch.Generator().manual_seed(7))


def on_first(model):
    """The mean absolute weight on the first token, of all later queries' absolute weights."""
    maps = [weights.abs()[:, :, 8:] for weights, _, _ in inside(model, held_out())]
    return sum((part[..., 0].sum() / part.sum()).item() for part in maps) / len(maps)
