"""Routers of a frozen model: each layer learns from whole prompts whether it has to attend to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.core.files import write_whole
from regard.core.frozen import frozen
from regard.hosts.attention_interface import host
from regard.hosts.sites import blocks_of
from regard.hosts.swap import Swap, head_dim_of
from regard.mechanisms.sparse.flux import Flux
from regard.train.fit import Recipe, fit

Draw = Callable[[Generator], tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]]
"""``(ids (b, n), targets (b, n))`` of a step: targets are ids too, or −100 where nothing is to be told. A third tensor,
bool, marks the tokens of the prompt, context and question, which are then all that routers read."""
COOLEST = 0.3
"""The last temperature of the samples."""
RECIPE = Recipe(300, 1e-3)
"""How routers are trained where nothing is said."""


@dataclass(frozen=True)
class Sparing:
    """How sparing routers are to be.

    Args:
        target: the share of layers that are to see a window only, in the end; it rises from 0. window, sinks, pool: of
            the layers, see `Flux`. temperature: of the samples, at first; it falls to 0.3.
    """

    target: float = 0.45
    window: int = 1024
    sinks: int = 128
    pool: int = 100
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise wrong("target", str(self.target), "a share of the layers, from 0 to 1")
        if not self.temperature > 0:
            raise wrong("temperature", str(self.temperature), "above 0")


DEFAULT = Sparing()


class Routed(Swap):
    """A model whose layers are routed, inside of a ``with`` block or from `install` to `remove`.

    Args:
        model: the host. layers: the routed attention of each.
    """

    def __init__(self, model: Any, layers: Sequence[Flux]) -> None:
        super().__init__(model, {index: (layer, "flux") for index, layer in enumerate(layers)})
        self.layers = nn.ModuleList(layers)

    @torch.no_grad()
    def shares(self, ids: Tensor) -> list[float]:
        """For each layer the share of ``ids (b, n)`` that it attends to in full."""
        found: list[float] = []

        def heard(flux: Flux, given: Any, named: Any) -> None:
            found.append(flux.decision(given[0]).mean().item())

        handles = [layer.register_forward_pre_hook(heard, with_kwargs=True) for layer in self.layers]
        try:
            with self:
                cast(Any, self.model)(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def save(self, path: Path) -> None:
        """Writes the routers' weights."""
        write_whole(path, lambda draft: torch.save(self.layers.state_dict(), draft))

    def load(self, path: Path) -> Routed:
        """Reads what `save` wrote."""
        self.layers.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return self


def routed(model: Any, sparing: Sparing = DEFAULT, seed: int = 0) -> Routed:
    """A Transformers model with an untrained router in each attention layer, all of which attend to everything."""
    model = host(model)
    depth, d = len(list(blocks_of(model))), head_dim_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [Flux(d, sparing.window, sparing.sinks, sparing.pool) for _ in range(depth)]
    like = next(model.parameters())
    return Routed(model, [layer.to(like.device) for layer in layers])


class Prices(nn.Module):
    """What a layer too many costs, learned for each task: it rises as long as the target is missed.

        penalty = λ₁ |s − t| + λ₂ (s − t)²

    s is the share of windows of a batch, t the target. The gradient that reaches λ is turned around.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.zeros(tasks, 2))

    def forward(self, task: int, share: Tensor, target: float) -> Tensor:
        """The penalty of a batch of a task."""
        apart = share - target
        costs = torch.stack([apart.abs(), apart.square()])
        prices = F.softplus(self.rates[task])
        rising = prices.detach() - prices  # zero, with the gradient turned around
        return (prices.detach() * costs).sum() + (rising * costs.detach()).sum()


def routers(
    model: Any,
    tasks: Mapping[str, Draw],
    sparing: Sparing = DEFAULT,
    recipe: Recipe = RECIPE,
    folder: Path | None = None,
    device: str = "cpu",
    report: Callable[[int, float], None] = lambda step, value: None,
) -> Routed:
    """Trains a router for each attention layer of a model, all of whose weights stay as they are.

        loss = cross-entropy of the routed model + λ₁ |s − t| + λ₂ (s − t)²

    Each step draws from the tasks in turn; λ are learned for each of them. Decisions are straight-through samples.

    Args:
        model: a Transformers language model. tasks: what draws a batch of each. sparing: how few layers are to attend
            to all. recipe: of the training. folder: of checkpoints, from which a run that was killed goes on.

    Raises:
        ValueError: no tasks, and what `regard.swap` refuses.

    Paper: Qiu et al. (Flux Attention), arXiv 2604.07394. Its data hold prompts and answers; routers read the prompts.
    """
    if not tasks:
        raise wrong("tasks", "none", "at least one")
    found = routed(model, sparing, recipe.seed)
    host_model, draws = cast(Any, found.model), list(tasks.values())
    trained = nn.ModuleDict({"layers": found.layers, "prices": Prices(len(draws))})

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        number = int(generator.initial_seed() - recipe.seed * 1_000_003)
        part = number / max(recipe.steps - 1, 1)
        task = number % len(draws)
        ids, targets, *prompt = (x.to(device) for x in draws[task](generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            for layer in found.layers:
                cast(Flux, layer).temperature = sparing.temperature + (COOLEST - sparing.temperature) * part
                cast(Flux, layer).prompt = prompt[0] if prompt else None
            with found:
                logits = host_model(input_ids=ids, use_cache=False).logits
        told = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=-100)
        windows = 1 - torch.stack([cast(Any, layer).decided for layer in found.layers]).mean()
        return told + trained["prices"](task, windows, sparing.target * part)

    try:
        with frozen(host_model.parameters()):
            fit(trained, loss, recipe, folder, device, report=report)
    finally:
        for layer in found.layers:
            own = cast(Flux, layer)
            own.temperature = own.decided = own.prompt = None
    return found
