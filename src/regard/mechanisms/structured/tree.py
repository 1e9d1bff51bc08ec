"""Hierarchical self-attention: one weight for every two parts of a tree, the nearest to softmax that there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.kernels import packing
from regard.mechanisms.cached import Cached

LOW = -1e30


@dataclass(frozen=True)
class Level:
    """The nodes of one height and the children of each.

    Args:
        children: ``(nodes, most)`` numbers of nodes a level below, −1 where a node has fewer.
    """

    children: Tensor

    @property
    def there(self) -> Tensor:
        """``(nodes, most)`` bool: where there is a child."""
        return self.children >= 0

    def gather(self, x: Tensor) -> Tensor:
        """What belongs to nodes ``(b, h, nodes below, …)``, by the children ``(b, h, nodes, most, …)``."""
        found = x[:, :, self.children.clamp(min=0)]
        return found * self.there.to(x.dtype).view(self.there.shape + (1,) * (found.dim() - 4))

    def scatter(self, x: Tensor, count: int) -> Tensor:
        """What belongs to children ``(b, h, nodes, most, …)``, by the numbers of the nodes below."""
        order = x.new_zeros(*x.shape[:2], count, *x.shape[4:])
        return order.index_copy(2, self.children[self.there], x[:, :, self.there])


@dataclass(frozen=True)
class Hierarchy:
    """A tree over a sequence: its tokens are the leaves.

    Args:
        levels: from that above the tokens to the root, which is one node.
    """

    levels: tuple[Level, ...]

    @classmethod
    def even(cls, n: int, branching: int, device: torch.device | str = "cpu") -> Hierarchy:
        """The tree that joins ``branching`` neighbours at each level until one node is left."""
        levels, below = [], n
        while below > 1 or not levels:
            nodes = -(-below // branching)
            children = torch.arange(nodes * branching, device=device).view(nodes, branching)
            levels.append(Level(torch.where(children < below, children, -1)))
            below = nodes
        return cls(tuple(levels))

    @classmethod
    def of(cls, parents: Sequence[int]) -> Hierarchy:
        """The tree of a list: ``parents[i]`` is the number of the node above node i, −1 for the root's.

        Tokens come first, in their order: they are the nodes that are nobody's parent. A branch that is shorter than
        others is drawn out by nodes with one child, which changes nothing.

        Raises:
            ValueError: no single root, a circle, or a leaf behind a node that has children.
        """
        roots, inner = [i for i, parent in enumerate(parents) if parent == -1], set(parents) - {-1}
        if len(roots) != 1 or not all(-1 <= parent < len(parents) for parent in parents):
            raise wrong("parents", f"{len(roots)} roots", "numbers of nodes, and −1 once")
        leaves = len(parents) - len(inner)
        if any(node < leaves for node in inner):
            raise wrong("parents", f"a child of token {min(inner)}", "tokens first, which have no children")
        paths = [path_up(node, parents) for node in range(leaves)]
        depth, levels, below = max(map(len, paths)), [], list(range(leaves))
        full = [[path[0]] * (depth - len(path)) + path for path in paths]
        for height in range(1, depth):
            above = [path[height] for path in full]
            first = dict.fromkeys(above)
            members = [sorted({below[leaf] for leaf in range(leaves) if above[leaf] == node}) for node in first]
            levels.append(Level(padded(members)))
            numbers = {node: number for number, node in enumerate(first)}
            below = [numbers[node] for node in above]
        return cls(tuple(levels or [Level(torch.zeros(1, 1, dtype=torch.int64))]))

    @property
    def leaves(self) -> int:
        """How many tokens."""
        return int(self.levels[0].there.sum())

    def nodes_of_tokens(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each level ``(n,)`` twice: the child of it that holds each token, and the node of it."""
        child = torch.arange(self.leaves, device=self.levels[0].children.device)
        for level in self.levels:
            above = torch.empty(int(level.children.max()) + 1, dtype=torch.int64, device=child.device)
            above[level.children[level.there]] = level.there.nonzero()[:, 0]
            yield child, above[child]
            child = above[child]


def path_up(node: int, parents: Sequence[int]) -> list[int]:
    """The numbers of the nodes from a token up to the root."""
    path = [node]
    while parents[path[-1]] != -1:
        path.append(parents[path[-1]])
        if len(path) > len(parents):
            raise wrong("parents", f"a circle above token {node}", "a tree")
    return path


def padded(members: list[list[int]]) -> Tensor:
    """Lists in one matrix, −1 behind the shorter ones."""
    most = max(map(len, members))
    return torch.tensor([row + [-1] * (most - len(row)) for row in members])


@published(
    "tree",
    family="structured",
    row=124,
    title="Hierarchical Self-Attention: Generalizing Neural Attention Mechanics to Multi-Scale Problems",
    arxiv="2509.15448",
    year=2025,
    aliases=("hsa", "hierarchical_self_attention"),
    fidelity="abstract only",
    claim=(
        Claim(
            "of all matrices tied in this way it is the nearest to softmax: none drawn and no minimiser is nearer",
            cells="trees.divergence",
            holds="trees.is_nearest",
        ),
        Claim("it scores O(n · branching) pairs", cells="trees.scored", holds="trees.is_linear"),
    ),
)
class Tree(Cached):
    """Self-attention with one weight for every two children of a node of a tree, nearest to softmax in divergence.

    Leaves are tokens; C_a are those below node a, q̄_a and k̄_b means over them. Upwards, from F_i = s_ii of each token,

        s̄_ab = q̄_a · k̄_b / √d,   G_a = log(e^{F_a} + Σ_{b ≠ a} |C_b| e^{s̄_ab}),   F_N = Σ_a |C_a| G_a / |C_N|

    over the children a, b of node N; downwards, for tokens i in a and j in b,

        A_ij = e^{s̄_ab − G_a} Π_{x above a} e^{F_x − G_x},   A_ii = Π_{x at or above i} e^{F_x − G_x}

    which minimises Σ_i KL(A_i ‖ softmax(s_i)) among the rows that are tied so. A tree of one level is softmax.
    The tree joins ``branching`` neighbouring tokens of a sequence or document, then as many of their nodes, up to one.
    `attend` takes any other, such as one whose root has a child for each of several modalities.

    Causal, rows are tied no more, since what they are tied to stands later: a token sees itself, and of each node above
    it the children left of its own, which are complete, as one,

        A_ij = e^{q_i · k̄_b / √d} / (e^{s_ii} + Σ_b |C_b| e^{q_i · k̄_b / √d}),   j in the left sibling b

    the nearest to causal softmax of the rows whose entries are tied so.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, n, d)``, ``v (b, g, n, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 B (d + e) FLOPs for each node below the root, B the branching: O(n B). Memory likewise. Causal, as many for
    each token and level of the tree: O(n B log n), and a copy of B keys and values each. State: all keys and values.

    Args:
        branching: B, at least 2.

    Raises:
        ValueError: a branching below 2.

    Paper: Amizadeh et al., arXiv 2509.15448. The equations here are derived, not taken from its text.
    """

    traits = Traits(cross=False, rows="one", sign="nonnegative", time="loglinear")
    layer = LayerSpec(rotary=False)

    def __init__(self, branching: int = 8) -> None:
        super().__init__()
        if branching < 2:
            raise wrong("branching", str(branching), "at least 2")
        self.branching = branching

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n = q.shape[2]
        if layout.causal:
            return packing.maps(self.map, q, repeat_heads(k, q.shape[1]), layout)
        out, k = q.new_zeros(*q.shape[:3], n), repeat_heads(k, q.shape[1])
        for row, tokens in packing.documents(layout, q.shape[0], n, k.device):
            if tokens.numel():
                scores = q[row, :, tokens] @ k[row, :, tokens].mT * q.shape[3] ** -0.5
                made = tied(scores, Hierarchy.even(tokens.numel(), self.branching, q.device))
                out = out.index_put((torch.tensor(row), *torch.meshgrid(
                    torch.arange(q.shape[1], device=q.device), tokens, tokens, indexing="ij")), made)  # fmt: skip
        return out

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        if q.shape[2] == 0 or k.shape[2] == 0:
            return q.new_zeros(*q.shape[:3], v.shape[3])

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if layout.causal:
                return look_left(q, k, v, self.branching)
            return attend(q, k, v, Hierarchy.even(q.shape[2], self.branching, q.device))

        return run(q, k, v) if layout.regular else packing.per_sequence(run, q, k, v, layout)

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        """Where A may be non-zero: rows of padding see nothing."""
        return layout.among_tokens(n, m, device, rows)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout, **signals)[:, :, rows]

    def map(self, q: Tensor, k: Tensor, rows: slice) -> Tensor:
        """Some rows of causal A of the last queries of one document."""
        n, m = q.shape[2], k.shape[2]
        scores, tree = q @ k.mT * q.shape[3] ** -0.5, Hierarchy.even(m, self.branching, q.device)
        here, logits = torch.arange(m - n, m, device=q.device), scores
        for child, node in tree.nodes_of_tokens():
            left = (node[here, None] == node) & (child < child[here, None])
            logits = torch.where(left, grouped_mean(scores.mT, child).mT, logits)
        return masked_softmax(logits, Layout(causal=True).allowed(n, m, q.device))[:, :, rows]

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        if layout.causal:
            each = shape.n * levels(shape.keys, self.branching) * self.branching * (shape.head_dim + shape.values)
            return Cost(2 * shape.batch * shape.heads * each, shape.io_bytes, shape.cache_bytes)
        slots, below = 0, shape.n
        while below > 1 or not slots:
            below = -(-below // self.branching)
            slots += below
        products = slots * self.branching**2 * (shape.head_dim + shape.values)
        return Cost(2 * shape.batch * shape.heads * products, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("branching 3", cls(3), 1, 1), Example("branching 7, grouped", cls(7), 2, 1)]


def attend(q: Tensor, k: Tensor, v: Tensor, tree: Hierarchy) -> Tensor:
    """``A v`` of `Tree` over any tree, in one pass up and one down."""
    dtype, wide = q.dtype, accumulate_dtype(q.dtype)
    q, k, v = (x.to(wide) for x in (q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])))
    scale = q.shape[3] ** -0.5
    size, free = q.new_ones(1, 1, q.shape[2]), (q * k).sum(-1) * scale
    parts, ups = (q, k, v), []
    for level in tree.levels:
        sizes = level.gather(size)
        below = [level.gather(part) for part in parts]
        own = torch.eye(sizes.shape[-1], dtype=torch.bool, device=q.device)
        logits = below[0] @ below[1].mT * scale + torch.log(sizes.clamp(min=1))[..., None, :]
        logits = torch.where(own, level.gather(free)[..., None], logits)
        logits = logits.masked_fill(~(level.there[:, None, :] | own), LOW)
        total = torch.logsumexp(logits, -1)
        shares = torch.exp(logits - total[..., None])
        ups.append((shares.masked_fill(own, 0) @ below[2], shares.diagonal(dim1=-2, dim2=-1), free.shape[2]))
        size = sizes.sum(-1)
        free = (sizes * total).sum(-1) / size
        parts = [(sizes[..., None] * part).sum(-2) / size[..., None] for part in below]
    out, stay = torch.zeros_like(parts[2]), torch.ones_like(free)
    for level, (beside, itself, count) in zip(reversed(tree.levels), reversed(ups), strict=True):
        out = level.scatter(out[..., None, :] + stay[..., None, None] * beside, count)
        stay = level.scatter(stay[..., None] * itself, count)
    return (out + stay[..., None] * v).to(dtype)


def levels(m: int, branching: int) -> int:
    """How many levels stand above so many tokens."""
    found, below = 0, m
    while below > 1 or not found:
        found, below = found + 1, -(-below // branching)
    return found


def look_left(q: Tensor, k: Tensor, v: Tensor, branching: int) -> Tensor:
    """``A v`` of causal `Tree` for the last queries of one document."""
    dtype, wide, (n, m) = q.dtype, accumulate_dtype(q.dtype), (q.shape[2], k.shape[2])
    if n > m:
        return F.pad(look_left(q[:, :, n - m :], k, v, branching), (0, 0, n - m, 0))
    q, keys, values = (x.to(wide) for x in (q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])))
    scale, here = q.shape[3] ** -0.5, torch.arange(m - n, m, device=q.device)
    logits, seen = [(q * keys[:, :, m - n :]).sum(-1, keepdim=True) * scale], [values[:, :, m - n :, None]]
    for level in range(levels(m, branching)):
        node = here // branching**level
        index = (node // branching * branching)[:, None] + torch.arange(branching, device=q.device)
        hidden, place = index >= node[:, None], index.clamp(max=keys.shape[2] - 1)
        scores = (q[:, :, :, None] @ keys[:, :, place].mT)[:, :, :, 0] * scale + level * math.log(branching)
        logits.append(scores.masked_fill(hidden, -torch.inf))
        seen.append(values[:, :, place])
        more = -keys.shape[2] % branching  # what is not complete is nobody's left sibling
        keys, values = (F.pad(x, (0, 0, 0, more)).unflatten(2, (-1, branching)).mean(3) for x in (keys, values))
    shares = torch.softmax(torch.cat(logits, -1), -1).split([x.shape[-1] for x in logits], -1)
    out = shares[0] * seen[0][:, :, :, 0]
    for share, value in zip(shares[1:], seen[1:], strict=True):
        out = out + (share[:, :, :, None] @ value)[:, :, :, 0]
    return out.to(dtype)


def tied(scores: Tensor, tree: Hierarchy) -> Tensor:
    """The definition: A ``(…, n, n)`` of `Tree` from the scores of all pairs, by means over blocks of the matrix."""
    free, logs = scores.diagonal(dim1=-2, dim2=-1), torch.zeros_like(scores)
    chosen = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    steps = []
    for child, node in tree.nodes_of_tokens():
        means = grouped_mean(grouped_mean(scores, child).mT, child).mT
        beside = (node[:, None] == node) & (child[:, None] != child)
        others = means.masked_fill(~beside, LOW)
        total = torch.logsumexp(torch.cat([others, free[..., None]], -1), -1)
        logs = torch.where(beside, means - total[..., None], logs)
        steps.append((beside, free - total))
        free = grouped_mean(total[..., None, :].mT, node)[..., 0]
    above = torch.zeros_like(free)
    for beside, stay in reversed(steps):
        logs, chosen = torch.where(beside, logs + above[..., None], logs), chosen | beside
        above = above + stay
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return torch.exp(torch.where(own, above[..., None], logs).masked_fill(~chosen, LOW))


def grouped_mean(x: Tensor, group: Tensor) -> Tensor:
    """Each of the rows ``(…, n, m)`` as the mean of the rows of its group ``(n,)``."""
    rows = x.movedim(-2, 0)
    sums = rows.new_zeros(int(group.max()) + 1, *rows.shape[1:]).index_add(0, group, rows)
    sizes = torch.bincount(group).to(x.dtype).view(-1, *[1] * (rows.dim() - 1))
    return (sums / sizes)[group].movedim(0, -2)
