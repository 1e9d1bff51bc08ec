"""Skim-Attention: one A from the boxes of a page, for all layers and for a pretrained encoder."""

from math import exp
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from claims.pages import MASK, VOCABULARY, in_line, pages, written
from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.layout import Layout
from regard.hosts import small
from regard.hosts.bert.skim_mask import SkimmingMask
from regard.mechanisms.scored.softmax import Softmax
from regard.networks.lm import IGNORED
from regard.networks.skimformer.attention import BoxEmbedding, Skim
from regard.networks.skimformer.network import Skimformer
from regard.projections.base import Grouped
from regard.train.fit import Recipe, fit

WIDTH, DEPTH, HEADS, STEPS = 48, 2, 4, 200
PLACES = 96


class Squares(TorchDispatchMode):
    """Counts the matrix products whose result is n × n."""

    def __init__(self, n):
        super().__init__()
        self.n, self.count = n, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        product = func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
        self.count += product and tuple(out.shape[-2:]) == (self.n, self.n)
        return out


class Standard(nn.Module):
    """A text encoder with a learned vector for each place in the line: queries and keys from the text."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(PLACES, WIDTH) * 0.1)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        d = WIDTH // HEADS
        self.blocks = nn.ModuleList(
            Block(Attention(Softmax(), Grouped(WIDTH, HEADS, HEADS, d, d)), WIDTH, 128) for _ in range(DEPTH)
        )
        self.norm = nn.RMSNorm(WIDTH)

    def loss(self, ids, boxes, targets, keys):
        x = self.embedding(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, Layout(key_mask=keys))
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def nearness(skim, boxes, drawn):
    """Weight on other words of a word's block, over the share that such words have among all others."""
    weights = skim(boxes, Layout(key_mask=drawn.keys)).mean(1)
    others = drawn.keys[:, :, None] & drawn.keys[:, None] & ~torch.eye(weights.shape[2], dtype=torch.bool)
    same = others & (drawn.block[:, :, None] == drawn.block[:, None])
    mass = ((weights * same).sum(2) / (weights * others).sum(2))[drawn.keys]
    chance = (same.sum(2) / others.sum(2))[drawn.keys]
    return (mass.mean() / chance.mean()).item()


@torch.no_grad()
def test_weights_by_hand():
    """A is the softmax of the products of six summed and normed entries; four tables serve the six."""
    torch.manual_seed(0)
    skim = Skim(12, 3, 23).double()
    boxes = torch.tensor([[[0, 1, 4, 3], [6, 1, 9, 3], [2, 7, 22, 11], [5, 7, 5, 7]]])
    tables, norm = skim.embedding, skim.embedding.norm
    rows = []
    for x0, y0, x1, y1 in boxes[0].tolist():
        x, y, w, h = (table.weight for table in (tables.x, tables.y, tables.w, tables.h))
        total = x[x0] + x[x1] + y[y0] + y[y1] + w[x1 - x0] + h[y1 - y0]
        rows.append((total - total.mean()) / (total.var(correction=0) + norm.eps).sqrt())
    x = torch.stack(rows)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = (x @ skim.q.weight[part].T) @ (x @ skim.k.weight[part].T).T / 2
        torch.testing.assert_close(skim(boxes)[0, head], scores.softmax(1), atol=1e-12, rtol=0)
    assert sum(p.numel() for p in tables.parameters()) == 4 * 23 * 12 + 2 * 12


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 4])
def test_one_product_of_queries_and_keys(depth, record_property):
    """One q·kᵀ in a forward pass, whatever its layers; FLOPs by formula are those counted."""
    drawn = pages(2, 0)
    n = drawn.keys.shape[1]
    ids = torch.randint(VOCABULARY, drawn.keys.shape)
    model = Skimformer(VOCABULARY, 40, depth, 4, PLACES, seed=0)
    with Squares(n) as squares:
        model(ids, drawn.boxes)
    record_property(f"products in {depth} layers", squares.count)
    assert squares.count == 1
    for layout_depth in (0, 3):
        model = Skimformer(VOCABULARY, 40, depth, 4, PLACES, layout_depth, seed=0)
        with FlopCounterMode(display=False) as counter:
            model(ids, drawn.boxes)
        assert model.flops(n, 2) == counter.get_total_flops()


@torch.no_grad()
def test_text_changes_nothing_in_a():
    """Two texts on one page: A, as the layers are given it, is equal bit for bit; one moved box changes it."""
    drawn, given = pages(2, 0), []
    model = Skimformer(VOCABULARY, 40, 3, 4, PLACES, seed=0)
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: given.append(args[1]))
    first, second = (torch.randint(VOCABULARY, drawn.keys.shape) for _ in range(2))
    apart = model(first, drawn.boxes, drawn.keys) - model(second, drawn.boxes, drawn.keys)
    assert apart.abs().max() > 0.1
    assert len(given) == 6
    assert all(torch.equal(given[0], other) for other in given[1:])
    moved = drawn.boxes.clone()
    moved[:, 5, ::2] += 1
    assert not torch.equal(model.skim(moved, Layout(key_mask=drawn.keys)), given[0])


@torch.no_grad()
@pytest.mark.parametrize("layout_depth", [0, 2])
def test_padding_changes_nothing(layout_depth):
    """A page alone and the same page padded give the same logits, with the layout's encoder too."""
    drawn = pages(3, 0)
    model = Skimformer(VOCABULARY, 40, 2, 4, PLACES, layout_depth, seed=0).double()
    ids = torch.randint(VOCABULARY, drawn.keys.shape)
    padded = model(ids, drawn.boxes.masked_fill(~drawn.keys[..., None], 7), drawn.keys)
    for i, keys in enumerate(drawn.keys):
        alone = model(ids[i : i + 1, keys], drawn.boxes[i : i + 1, keys])
        torch.testing.assert_close(alone[0], padded[i, keys], atol=1e-12, rtol=0)


def trained(model, place, seed):
    """The model after `STEPS` batches of 32 of 2,000 pages under ever new text."""
    drawn = pages(2000, 0)

    def loss(model, generator):
        part = drawn[torch.randint(len(drawn.keys), (32,), generator=generator)]
        ids, targets = written(part, generator)
        return model.loss(ids, place(part.boxes), targets, part.keys)

    fit(model, loss, Recipe(STEPS, rate=5e-3, seed=seed))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_pages_in_two_columns(seed, record_property):
    """Unseen pages: perplexity below 1-D positions'; weight on the rest of a word's block at least twice chance."""
    held = pages(256, 1)
    ids, targets = written(held, torch.Generator().manual_seed(9))
    assert ((targets != IGNORED) == (ids == MASK)).all()
    layout, line = (Skimformer(VOCABULARY, WIDTH, DEPTH, HEADS, PLACES, seed=seed) for _ in range(2))
    untrained = nearness(layout.skim, held.boxes, held)
    found = {
        "layout": trained(layout, lambda boxes: boxes, seed).loss(ids, held.boxes, targets, held.keys),
        "1-D positions": trained(line, in_line, seed).loss(ids, in_line(held.boxes), targets, held.keys),
        "standard with 1-D positions": trained(Standard(seed), in_line, seed).loss(ids, None, targets, held.keys),
    }
    near, other = nearness(layout.skim, held.boxes, held), nearness(line.skim, in_line(held.boxes), held)
    record_property("perplexity", ", ".join(f"{kind} {exp(loss.item()):.2f}" for kind, loss in found.items()))
    record_property("own block over chance", f"{near:.2f}, untrained {untrained:.2f}, 1-D positions {other:.2f}")
    assert found["layout"] < min(found["1-D positions"], found["standard with 1-D positions"])
    assert near >= 2
    assert untrained < 1.5


@pytest.fixture(scope="module")
def minilm():
    return small.load("minilm")[0]


@pytest.fixture
def text():
    drawn = pages(2, 0)[:, :61]
    ids = torch.randint(1000, 20_000, drawn.keys.shape, generator=torch.Generator().manual_seed(0))
    return ids, drawn


@torch.no_grad()
def test_a_wide_mask_is_the_encoder(minilm, text):
    """k of n or more gives MiniLM's own hidden states, padded or not (1e-5); k = 8 gives others."""
    ids, drawn = text
    torch.manual_seed(0)
    skim = Skim(24, 12, PLACES)
    keys = torch.arange(61) < torch.tensor([[61], [40]])
    want = minilm(input_ids=ids, attention_mask=keys.long()).last_hidden_state
    for top in (61, 1000):
        got = SkimmingMask(minilm, skim, top)(ids, drawn.boxes, keys)
        torch.testing.assert_close(got[keys], want[keys], atol=1e-5, rtol=1e-5)
    assert (SkimmingMask(minilm, skim, 8)(ids, drawn.boxes, keys) - want)[keys].abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 12])
def test_every_layer_sees_the_k_largest(minilm, text, heads):
    """In each of MiniLM's layers and heads a word's weights are above zero at the k largest of A alone."""
    ids, drawn = text
    torch.manual_seed(0)
    masked = SkimmingMask(small.load("minilm")[0], Skim(24, heads, PLACES), 8)
    masked.model.set_attn_implementation("eager")
    keys = torch.arange(61) < torch.tensor([[61], [40]])
    weights, seen = masked.skim(drawn.boxes, Layout(key_mask=keys)), []
    for layer in cast(Any, masked.model).encoder.layer:
        layer.attention.self.register_forward_hook(lambda _, args, out: seen.append(out[1]))
    masked(ids, drawn.boxes, keys)
    least = weights.sort(3, descending=True).values[..., 7:8]
    assert len(seen) == 6
    rows = keys[:, None].expand(-1, 12, -1)
    for found in seen:
        assert torch.equal((found > 0)[rows], (weights >= least).expand_as(found)[rows])


def test_bad_input_is_named(minilm):
    boxes = torch.zeros(1, 3, 4, dtype=torch.int64)
    embedding = BoxEmbedding(8, 16)
    with pytest.raises(TypeError, match="boxes: got dtype"):
        embedding(boxes.float())
    with pytest.raises(ValueError, match="boxes: got shape"):
        embedding(boxes[..., :3])
    with pytest.raises(ValueError, match="boxes: got 0 to 16, want 0 to 15"):
        embedding(boxes + torch.tensor([0, 0, 16, 0]))
    with pytest.raises(ValueError, match="boxes: got x1 < x0"):
        embedding(boxes + torch.tensor([3, 0, 0, 0]))
    with pytest.raises(ValueError, match="heads"):
        Skim(10, 3)
    with pytest.raises(ValueError, match="depth"):
        Skimformer(29, depth=0)
    with pytest.raises(ValueError, match="a box for each"):
        Skimformer(29, 12, 1, 3)(torch.zeros(1, 2, dtype=torch.int64), boxes)
    with pytest.raises(TypeError, match="model"):
        SkimmingMask(small.load("tiny")[0], Skim(24, 12), 8)
    with pytest.raises(ValueError, match="skim: got 2 heads"):
        SkimmingMask(minilm, Skim(24, 2), 8)
    with pytest.raises(ValueError, match="top"):
        SkimmingMask(minilm, Skim(24, 12), 0)
