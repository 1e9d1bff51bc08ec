"""Multi-token attention: the identity start, nothing from the future, and the toy task of its paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.networks.lm import LM, Config
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)
LETTERS, LENGTH, BLOCKS, QUESTIONS = 26, 5, 5, 6
STOP, ASK = LETTERS, LETTERS + 1
ANSWERS = BLOCKS * (LENGTH + 1) + 4 * torch.arange(1, QUESTIONS + 1) - 1
KINDS = {"multi_token": "multi_token(query_taps=2, key_taps=9, group=1)*2", "softmax": "softmax*2"}


def draw(n: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.float64) for _ in range(3))
    return q, k, v


@measured()
def untrained() -> dict[str, float]:
    """How far it is from softmax attention with the kernels that it begins with."""
    q, k, v = draw(600)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return {"apart": (regard.build("multi_token")(q, k, v, CAUSAL) - want).abs().max().item()}


@measured()
def edited() -> dict[str, float]:
    """After an edit of the last ten tokens: the largest change of an earlier output, and the least of their own."""
    q, k, v = draw(300)
    mechanism = regard.build("multi_token").double()
    for parameter in mechanism.parameters():
        nn.init.normal_(parameter, std=0.5)
    before = mechanism(q, k, v, CAUSAL)
    for x in (q, k, v):
        x[:, :, 290:] += 1
    change = (before - mechanism(q, k, v, CAUSAL)).abs()
    return {"earlier": change[:, :, :290].max().item(), "own": change[:, :, 290:].min().item()}


def nothing_leaks(found: Figures) -> Finding:
    """Earlier outputs stay bit for bit, later ones change."""
    earlier, own = found.one("earlier"), found.one("own")
    return Finding.of(f"largest change of earlier outputs {earlier:.0g}", earlier == 0, own > 0)


def blocks(count: int, generator: Generator) -> Tensor:
    """``(count, n)``: blocks of letters, then questions: two letters of one block only, and its first letter."""
    letters = torch.rand(count, BLOCKS, LETTERS, generator=generator).argsort(-1)[..., :LENGTH]
    text = [F.pad(letters, (0, 1), value=STOP).flatten(1)]
    for _ in range(QUESTIONS):
        block = letters[torch.arange(count), torch.randint(BLOCKS, (count,), generator=generator)]
        held = (letters[:, :, None] == block[:, None, :, None]).any(-1)  # (count, BLOCKS, LENGTH)
        both = (held[:, :, :, None] & held[:, :, None]).sum(1) > 1
        pairs = torch.rand(count, LENGTH, LENGTH, generator=generator).masked_fill(both, -1)
        best = pairs.masked_fill(torch.eye(LENGTH, dtype=torch.bool), -1).flatten(1).argmax(1, keepdim=True)
        asked = block.gather(1, torch.cat([best // LENGTH, best % LENGTH], 1))
        text += [torch.full((count, 1), ASK), asked, block[:, :1]]
    return torch.cat(text, 1)


@measured(kind=tuple(KINDS), steps=[500])
def toy_task(kind: str, steps: int) -> dict[str, float]:
    """The share of wrong answers about which block holds two letters."""

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        text = blocks(32, generator)
        return F.cross_entropy(model(text)[:, ANSWERS - 1].flatten(0, 1), text[:, ANSWERS].flatten())

    model = fit(LM(Config(LETTERS + 2, 64, KINDS[kind], heads=2), seed=0), loss, Recipe(steps, rate=4e-3, decay=0))
    held_out = blocks(1000, torch.Generator().manual_seed(99))
    with torch.no_grad():
        found = model(held_out)[:, ANSWERS - 1].argmax(-1)
    return {"error": (found != held_out[:, ANSWERS]).float().mean().item()}


def finds_the_block(found: Figures) -> Finding:
    """Errs below 5%, softmax attention above 30%."""
    own, softmax = (found.one("error", kind=kind) for kind in KINDS)
    return Finding.of(f"the toy task of its paper: error {own:.1%}, softmax {softmax:.1%}", own < 0.05, softmax > 0.3)
