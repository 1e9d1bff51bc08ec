"""Routers of a frozen model's queries: each query of each head learns whether it has to attend to everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.frozen import frozen
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.hosts.attention_interface import host
from regard.hosts.sites import blocks_of
from regard.hosts.swap import Swap
from regard.mechanisms.sparse.aha import AllOrHere
from regard.train.fit import Recipe, fit

Draw = Callable[[Generator], Tensor]
"""The ids ``(b, n)`` of a step."""
RECIPE = Recipe(300, 3e-2, decay=0.0)
"""How routers are trained where nothing is said: a step changes a number by its rate at most, so that the rates have to
add up to more than `SURE`."""
SURE = 2.0
"""The logits of untrained routers: every query attends to everything."""


@dataclass(frozen=True)
class Thrift:
    """How sparing routers are to be.

    Args:
        price: λ, nats a token for a model that attends to everything in all heads. window, sinks: of the others; with
            no sinks a model that is not tuned loses the tokens that take the attention that it has no use for.
    """

    price: float = 0.1
    window: int = 256
    sinks: int = 4

    def __post_init__(self) -> None:
        if not self.price >= 0:
            raise wrong("price", str(self.price), "0 or more")


DEFAULT = Thrift()


class TokenRouter(Mechanism):
    """All-or-here attention whose router reads the hidden states that come into the layer: r = σ(x W + c).

    Args:
        width: of x. heads: of queries. thrift: says which keys those see that are not sent to all.

    What is to be read is told by `hear` before each call; see `AllOrHere` for the rest.
    """

    def __init__(self, width: int, heads: int, thrift: Thrift = DEFAULT) -> None:
        super().__init__()
        self.either = AllOrHere(f"window(size={thrift.window}, sinks={thrift.sinks})")
        self.traits = replace(self.either.traits, leaks=False)
        self.router = nn.Linear(width, heads)
        nn.init.zeros_(self.router.weight)
        nn.init.constant_(self.router.bias, SURE)
        self.route: Tensor | None = None

    def hear(self, x: Tensor) -> None:
        """Routes the queries that are made of ``x (b, n, width)``: ``(b, heads, n)``."""
        self.route = self.router(x.to(self.router.weight.dtype)).sigmoid().mT

    def told(self, q: Tensor) -> Tensor:
        """The route of the queries of this call."""
        if self.route is None or self.route.shape != q.shape[:3]:
            came = "nothing" if self.route is None else f"routes of {tuple(self.route.shape)}"
            raise wrong("hear", came, f"the hidden states of {tuple(q.shape[:3])} queries before the call")
        return self.route.to(q.dtype)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        return self.either.weights(q, k, layout, route=self.told(q))

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.either.rows(q, k, layout, rows, route=self.told(q))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        return self.either(q, k, v, layout, route=self.told(q))

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """Nothing seen."""
        return self.either.start(batch, device=device, dtype=dtype)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Any]:
        """As all-or-here attention does."""
        return self.either.extend(q, k, v, state, key_mask, route=self.told(q))

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        return self.either.cost(shape, layout)


class TokenRouted(Swap):
    """A model whose queries are routed, inside of a ``with`` block or from `install` to `remove`.

    Args:
        model: the host. attentions: its attention modules, whose inputs routers read. layers: their routers.
    """

    def __init__(self, model: Any, attentions: Sequence[nn.Module], layers: Sequence[TokenRouter]) -> None:
        super().__init__(model, {index: (layer, "aha") for index, layer in enumerate(layers)})
        self.attentions, self.layers = list(attentions), nn.ModuleList(layers)
        self.handles: list[Any] = []

    def install(self) -> TokenRouted:
        """Puts the routers in, to stay until `remove`."""
        super().install()
        for attention, layer in zip(self.attentions, self.layers, strict=True):

            def told(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], layer: Any = layer) -> None:
                layer.hear(given[0] if given else named["hidden_states"])

            self.handles.append(attention.register_forward_pre_hook(told, with_kwargs=True))
        return self

    def remove(self) -> None:
        """Gives the model its own attention back."""
        super().remove()
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for layer in self.layers:
            cast(TokenRouter, layer).route = None

    def routes(self) -> list[Tensor]:
        """``(b, heads, n)`` of each layer in the last pass, above 1/2 where a query attends to everything."""
        return [cast(Tensor, cast(TokenRouter, layer).route) for layer in self.layers]

    @torch.no_grad()
    def share(self, ids: Tensor) -> float:
        """The share of all queries of ``ids (b, n)``, over layers and heads, that attend to everything."""
        with self:
            cast(Any, self.model)(input_ids=ids, use_cache=False)
            return torch.stack([(route > 0.5).float().mean() for route in self.routes()]).mean().item()


def token_routed(model: Any, thrift: Thrift = DEFAULT) -> TokenRouted:
    """A Transformers model with an untrained router in each attention layer, all of whose queries see everything.

    Raises:
        ValueError: a block with more than one attention, or none that is an attention of one width.
    """
    model = host(model)
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    modules, attentions = dict(model.named_modules()), []
    for block in blocks_of(model):
        if len(block.attention) != 1:
            raise wrong("model", f"{block.name} with {len(block.attention)} attentions", "one in each block")
        attentions.append(modules[block.attention[0]])
    like = next(model.parameters())
    return TokenRouted(model, attentions, [TokenRouter(width, heads, thrift).to(like.device) for _ in attentions])


def token_routers(
    model: Any,
    draw: Draw,
    thrift: Thrift = DEFAULT,
    recipe: Recipe = RECIPE,
    folder: Path | None = None,
    device: str = "cpu",
    report: Callable[[int, float], None] = lambda step, value: None,
) -> TokenRouted:
    """Trains a router for each attention layer of a model, all of whose weights stay as they are.

        loss = cross-entropy of the routed model + λ · mean of r over layers, heads and tokens

    Args:
        model: a Transformers language model. draw: draws the texts of a step. thrift: λ, and what routed queries see.
        recipe: of the training. folder: of checkpoints, from which a run that was killed goes on.

    Raises:
        ValueError: what `token_routed` and `regard.swap` refuse.

    Paper: Luo et al., *Learning When Not to Attend Globally*, December 2025, who also tune the model.
    """
    found = token_routed(model, thrift)
    host_model = cast(Any, found.model)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        ids = draw(generator).to(device)
        with found:
            logits = host_model(input_ids=ids, use_cache=False).logits
            routed = torch.stack([route.mean() for route in found.routes()]).mean()
        told = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        return told + thrift.price * routed

    with frozen(host_model.parameters()):
        fit(found.layers, loss, recipe, folder, device, report=report)
    return found
