"""Which neurons a feed-forward network's part of a state is made of: the last step of information flow routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.analysis.base import Result
from regard.analysis.flow_routes import Edge, Routes, shares
from regard.core.errors import wrong
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.hosts.sites import Block, blocks_of

DOWN = ("down_proj", "fc2", "fc_out", "w2", "dense_4h_to_h", "c_proj", "wo")
"""How models call the matrix from a network's neurons to the channels."""
CLOSE = 1e-3
"""How far the sum of all neurons may be off what the network adds, of its largest entry."""


@dataclass(frozen=True)
class Neurons(Result):
    """What one feed-forward network adds to one state, neuron by neuron.

    Args:
        layer: of the block. slot: of the token. shares: ``(neurons,)``, of the state that the block leaves there.
        resid: the share of what was there before the network. activations: ``(neurons,)``, what each neuron's row of
            the output matrix is multiplied with.
    """

    layer: int
    slot: int
    shares: Tensor
    resid: float
    activations: Tensor
    name = "route_neurons"

    def ranked(self, count: int | None = None) -> list[tuple[int, float]]:
        """Neurons by their share, the largest first."""
        order = self.shares.argsort(descending=True, stable=True)[:count].tolist()
        return [(neuron, float(self.shares[neuron])) for neuron in order]

    def table(self) -> list[dict[str, Any]]:
        where = {"layer": self.layer, "slot": self.slot}
        return [where | {"neuron": i, "share": x, "activation": float(self.activations[i])} for i, x in self.ranked()]


class NetworkStates:
    """The states around the feed-forward networks of one pass, and their neurons' activations.

    Args:
        model: a Transformers model whose networks end in a linear layer. ids: ``(n,)``.

    Raises:
        ValueError: a network that ends otherwise, or in one of several, as experts' do.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.matrices = [down_of(block) for block in blocks_of(model)]
        self.inputs: dict[int, Tensor] = {}
        self.trace = Trace("resid", "attn", "mlp")
        handles = [matrix.register_forward_pre_hook(self.note(at)) for at, matrix in enumerate(self.matrices)]
        try:
            with attach(model, edits=[self.trace]), torch.no_grad():
                model(input_ids=ids[None].to(model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self.n = len(ids)

    def note(self, layer: int) -> Any:
        """The hook that keeps what a layer's output matrix is given."""

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.inputs[layer] = inputs[0].detach()

        return hook

    @torch.no_grad()
    def neurons(self, layer: int, slot: int) -> Neurons:
        """The shares of one state.

        Raises:
            ValueError: no such layer or token; a network whose neurons do not add up to what it adds.
        """
        if not 0 <= layer < len(self.matrices) or not -self.n <= slot < self.n:
            raise wrong("layer, slot", f"{layer}, {slot}", f"one of {len(self.matrices)} layers and {self.n} tokens")
        slot %= self.n
        before, attn, added = (self.trace.get(part, layer)[0, slot].float() for part in ("resid", "attn", "mlp"))
        activations = self.inputs[layer][0, slot].float()
        weight, bias = matrix_of(self.matrices[layer])
        parts = activations[:, None] * weight.float()
        told = parts.sum(0) if bias is None else parts.sum(0) + bias.float()
        if float((told - added).abs().max()) > CLOSE * float(added.abs().max()):
            what = f"layer {layer}, whose network adds something else than the sum of its neurons"
            raise wrong("model", what, "networks whose last step is the matrix from neurons to channels")
        middle = before + attn
        found = shares(middle + added, torch.cat([parts, middle[None]]))
        return Neurons(layer, slot, found[:-1], float(found[-1]), activations)


def neurons(model: Any, ids: Tensor, layer: int, slot: int = -1) -> Neurons:
    """The share of each neuron of a feed-forward network in the state that its block leaves at a token.

        c_k = a_k W_k,   share_k = p_k / Σ p,   p_c = max(10⁻⁵, ‖y‖₁ − ‖y − c‖₁)

    y is the state, a_k what comes out of neuron k, gated where the network is, W_k its row of the output matrix; the
    state before the network is one part more, and a bias of the output is none.

    Args:
        model: a Transformers model. ids: ``(n,)``. layer, slot: of the state; -1 for the last token.

    Raises:
        ValueError: see `NetworkStates`.

    Paper: Ferrando and Voita, arXiv 2403.00824; parts and norm as in the authors' code.
    """
    return NetworkStates(model, ids).neurons(layer, slot)


def by_neuron(model: Any, ids: Tensor, graph: Routes, count: int = 3) -> dict[Edge, list[tuple[int, float]]]:
    """The strongest neurons, with their shares, of every edge of a feed-forward network in a graph of routes."""
    states = NetworkStates(model, ids)
    edges = [edge for edge in graph.edges if edge.part == "mlp"]
    return {edge: states.neurons(edge.layer, edge.to).ranked(count) for edge in edges}


def down_of(block: Block) -> nn.Module:
    """The matrix by which a block's feed-forward network ends.

    Raises:
        ValueError: there is none of a known name outside of the attention, or several.
    """
    attention = [name.removeprefix(f"{block.name}.") for name in block.attention]
    found = [
        module
        for name, module in block.module.named_modules()
        if name.rpartition(".")[2] in DOWN
        and getattr(module, "weight", None) is not None
        and not any(f"{name}.".startswith(f"{own}.") for own in attention)
    ]
    if len(found) != 1:
        what = f"{block.name}, with {len(found)} matrices of the names {', '.join(DOWN)} outside of its attention"
        raise wrong("model", what, "one: networks of experts have no neurons of their own")
    return found[0]


def matrix_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """``(neurons, channels)`` and the bias of a linear layer, which Transformers' `Conv1D` stores the other way."""
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    return weight if type(module).__name__ == "Conv1D" else weight.T, bias
