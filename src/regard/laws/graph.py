"""The laws of graph attention: what a layer that attends along edges must satisfy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.laws.finding import Broken, same
from regard.mechanisms.structured.graph import GraphAttention

__all__ = ["LAWS", "example", "subject"]

NODES, EDGES, SOURCES, TARGETS = 23, 71, 13, 7
PRECISIONS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
ALONE = (4, 17)
"""Nodes to which no edge leads."""


@dataclass(frozen=True)
class Call:
    """What a layer is called with."""

    x: Tensor | tuple[Tensor, Tensor]
    edges: Tensor
    features: Tensor | None

    def cast(self, dtype: torch.dtype) -> Call:
        """The same, rounded."""
        x = tuple(part.to(dtype) for part in self.x) if isinstance(self.x, tuple) else self.x.to(dtype)
        return Call(x, self.edges, None if self.features is None else self.features.to(dtype))  # pyright: ignore


class Graphs:
    """A layer with graphs drawn for it: some edges twice, a loop, nodes without edges."""

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.layer: GraphAttention = copy.deepcopy(sample.thing).double().to(device)
        self.device = device

    def draw(self, seed: int = 0, edges: Tensor | None = None, sizes: tuple[int, ...] = (NODES,)) -> Call:
        """Nodes, or sources and targets, of normal features, and edges between them."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device)

        channels = self.layer.channels or 5
        x = tuple(normal(size, channels) for size in sizes)
        if edges is None:
            ends = [torch.randint(size, (EDGES,), generator=generator) for size in (sizes[0], sizes[-1])]
            if sizes == (NODES,):
                ends[1][torch.isin(ends[1], torch.tensor(ALONE))] = 2
                ends[1][3] = ends[0][3] = 5
            edges = torch.stack(ends)
            edges[:, -1] = edges[:, 0]
        width = self.layer.edge_channels
        features = None if width is None else normal(edges.shape[1], width)
        return Call(x[0] if len(x) == 1 else (x[0], x[1]), edges.to(self.device), features)

    def full(self, sources: int, targets: int) -> Call:
        """Every pair of sources and targets, in an order of its own."""
        pairs = torch.cartesian_prod(torch.arange(sources), torch.arange(targets)).mT
        order = torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(1))
        return self.draw(edges=pairs[:, order], sizes=(sources, targets))

    def out(self, call: Call, layer: GraphAttention | None = None) -> Tensor:
        return (layer or self.layer)(call.x, call.edges, call.features)

    def define(self, call: Call, layer: GraphAttention | None = None) -> Tensor:
        """The output by a masked softmax over all edges for each node."""
        layer = layer or self.layer
        a, v = layer.dense(call.x, call.edges, call.features)
        return layer.merged((a @ v).transpose(0, 1))

    def weights(self, call: Call) -> Tensor:
        return self.layer.weights(call.x, call.edges, call.features)


def definition(subject: Graphs) -> str:
    """forward is the masked softmax over all edges, times the messages: float64 to 1e-9, float32 to 1e-4, half
    precision to 2e-2; so on graphs whose sources are other nodes than their targets."""
    worst = 0.0
    for sizes in ((NODES,), (SOURCES, TARGETS), (1,)):
        call = subject.draw(sizes=sizes)
        worst = max(worst, same(subject.out(call), subject.define(call), 1e-9, f"nodes {sizes}"))
        for dtype, tolerance in PRECISIONS.items():
            layer, rounded = copy.deepcopy(subject.layer).to(dtype), call.cast(dtype)
            got = subject.out(rounded, layer)
            if got.dtype != dtype:
                raise Broken(f"forward returned {got.dtype} for {dtype}")
            same(got, subject.define(rounded.cast(torch.float64), layer.double()), tolerance, f"nodes {sizes}, {dtype}")
    return f"{worst:.0e}"


def full(subject: Graphs) -> str:
    """On a graph of all pairs, weights are the softmax of the matrix of their scores."""
    call, layer = subject.full(SOURCES, TARGETS), subject.layer
    scores = layer.score(layer.project(*call.x), call.edges, call.features)
    places = call.edges[1] * SOURCES + call.edges[0]
    matrix = scores.new_zeros(SOURCES * TARGETS, layer.heads).index_copy(0, places, scores)
    want = matrix.unflatten(0, (TARGETS, SOURCES)).softmax(1).flatten(0, 1)[places]
    return f"{same(subject.weights(call), want, 1e-12, 'all pairs'):.0e}"


def rows(subject: Graphs) -> str:
    """The weights of the edges that lead to a node are not negative and sum to one in each head."""
    call = subject.draw()
    weights = subject.weights(call)
    if weights.shape != (EDGES, subject.layer.heads):
        raise Broken(f"weights of shape {tuple(weights.shape)} for {EDGES} edges")
    sums = weights.new_zeros(NODES, subject.layer.heads).index_add(0, call.edges[1], weights)
    there = torch.isin(torch.arange(NODES, device=sums.device), call.edges[1])
    worst = (sums - there[:, None].to(sums.dtype)).abs().max().item()
    if worst > 1e-12 or weights.min() < 0:
        raise Broken(f"weights of a node sum to {sums[there].min():.6f} … {sums.max():.6f}, least {weights.min():.1e}")
    return f"{worst:.0e}"


def order(subject: Graphs) -> str:
    """Weights stand in the order of the edges, which the output does not know."""
    call = subject.draw()
    turned = torch.randperm(EDGES, generator=torch.Generator().manual_seed(2)).to(subject.device)
    moved = Call(call.x, call.edges[:, turned], None if call.features is None else call.features[turned])
    worst = same(subject.weights(moved), subject.weights(call)[turned], 1e-12, "weights of edges in another order")
    return f"{max(worst, same(subject.out(moved), subject.out(call), 1e-12, 'edges in another order')):.0e}"


def nodes(subject: Graphs) -> str:
    """Nodes that are numbered otherwise give the same, numbered so."""
    call = subject.draw()
    assert isinstance(call.x, Tensor)
    turned = torch.randperm(NODES, generator=torch.Generator().manual_seed(3)).to(subject.device)
    moved = Call(call.x[turned], turned.argsort()[call.edges], call.features)
    same(subject.weights(moved), subject.weights(call), 1e-12, "weights with other numbers of nodes")
    return f"{same(subject.out(moved), subject.out(call)[turned], 1e-12, 'nodes in another order'):.0e}"


def isolated(subject: Graphs) -> str:
    """Nodes to which no edge leads get zeros and the bias, and hand back no gradient; so where there are no edges."""
    empty = torch.zeros(2, 0, dtype=torch.int64, device=subject.device)
    for call, alone in ((subject.draw(), list(ALONE)), (subject.draw(edges=empty), list(range(NODES)))):
        x = call.x.clone().requires_grad_()  # pyright: ignore[reportAttributeAccessIssue]
        out, bias = subject.out(Call(x, call.edges, call.features)), subject.layer.bias
        rest = out[alone] - (0 if bias is None else bias)
        if rest.count_nonzero():
            raise Broken(f"a node without edges gets {rest.abs().max().item():.1e}")
        (gradient,) = torch.autograd.grad(out[alone].sum(), x, allow_unused=True, materialize_grads=True)
        if gradient.count_nonzero():
            raise Broken("a node without edges has a gradient")
    return "zeros"


def local(subject: Graphs) -> str:
    """What a node is given depends on itself and the sources of its edges alone."""
    call = subject.draw()
    assert isinstance(call.x, Tensor)
    node = int(call.edges[1, 0])
    near = torch.isin(torch.arange(NODES, device=subject.device), call.edges[0][call.edges[1] == node])
    near[node] = True
    other = torch.where(near[:, None], call.x, -3 * call.x)
    apart = (subject.out(Call(other, call.edges, call.features)) - subject.out(call))[node].abs().max().item()
    if near.all() or apart > 1e-12:
        raise Broken(f"nodes that do not lead to it move a node by {apart:.1e}")
    return f"{int(near.sum())} of {NODES} nodes"


def ranking(subject: Graphs) -> str:
    """Over the same sources all targets rank alike where the layer says that it is static, and not where it is not."""
    call = subject.full(SOURCES, TARGETS)
    if call.features is not None:
        call = Call(call.x, call.edges, torch.zeros_like(call.features))
    places = call.edges[1] * SOURCES + call.edges[0]
    weights = subject.weights(call)
    weights = weights.new_zeros(weights.shape).index_copy(0, places, weights).unflatten(0, (TARGETS, SOURCES))
    orders = weights.argsort(1)
    alike = bool((orders == orders[:1]).all())
    if alike != subject.layer.static:
        raise Broken("all targets rank alike" if alike else "targets rank otherwise, declared static")
    return "static" if alike else "dynamic"


def gradients(subject: Graphs) -> str:
    """Gradients of forward are those of the definition; outputs and gradients are finite where scores are large."""
    call, worst = subject.draw(), 0.0
    found = [differentiated(subject, call, run) for run in (subject.out, subject.define)]
    for (name, got), want in zip(found[0].items(), found[1].values(), strict=True):
        worst = max(worst, same(got, want, 1e-8, f"d {name}"))
    assert isinstance(call.x, Tensor)
    for name, gradient in differentiated(subject, Call(1e4 * call.x, call.edges, call.features), subject.out).items():
        if not gradient.isfinite().all():
            raise Broken(f"large features: {name} is not finite")
    return f"{worst:.0e}"


def differentiated(subject: Graphs, call: Call, run: Callable[[Call], Tensor]) -> dict[str, Tensor]:
    """The output and the gradients of nodes, features and parameters."""
    assert isinstance(call.x, Tensor)
    x = call.x.clone().requires_grad_()
    features = None if call.features is None else call.features.clone().requires_grad_()
    named = {"x": x, **({} if features is None else {"edge_features": features})}
    named |= dict(subject.layer.named_parameters())
    out = run(Call(x, call.edges, features))
    weighting = torch.sin(torch.arange(out.numel(), dtype=out.dtype, device=out.device)).view_as(out)
    grads = torch.autograd.grad(
        (out * weighting).sum(), list(named.values()), allow_unused=True, materialize_grads=True
    )
    return {"output": out} | dict(zip(named, grads, strict=True))


def refusals(subject: Graphs) -> str:
    """What does not fit is named: nodes, edges, numbers of nodes that there are not, features of edges."""
    call = subject.draw()
    assert isinstance(call.x, Tensor)
    far, features = call.edges.clone(), torch.zeros(EDGES + 1, 3, dtype=torch.float64, device=subject.device)
    far[1, 5] = NODES
    bad = [
        ("x", Call(call.x[None], call.edges, call.features)),
        ("x", Call(torch.cat([call.x, call.x], 1), call.edges, call.features)),
        ("edges", Call(call.x, call.edges.mT, call.features)),
        ("edges", Call(call.x, call.edges.double(), call.features)),
        ("edges[1]", Call(call.x, far, call.features)),
        ("edges[0]", Call(call.x, far.flip(0) - NODES - 1, call.features)),
        ("edge_features", Call(call.x, call.edges, features)),
    ]
    if call.features is not None:
        bad.append(("edge_features", Call(call.x, call.edges, None)))
    for argument, given in bad:
        try:
            subject.out(given)
        except (ValueError, TypeError) as error:
            if not str(error).startswith(f"{argument}: ") or "want" not in str(error):
                raise Broken(f"bad {argument}: the message does not name it: {error}") from error
        else:
            raise Broken(f"bad {argument}: accepted without an error")
    return f"{len(bad)} of them"


LAWS: dict[str, Callable[[Graphs], str]] = {
    law.__name__: law for law in (definition, full, rows, order, nodes, isolated, local, ranking, gradients, refusals)
}
subject = Graphs


def example(thing: GraphAttention) -> Sample:
    """A layer as it is."""
    return Sample(type(thing).__name__, thing)
