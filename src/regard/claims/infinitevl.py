"""Linear layers in the place of attention: they go on as they began, do not grow, and can be learned from attention."""

from __future__ import annotations

from typing import Any

import torch

from regard.claims.cells import measured
from regard.claims.extend import model_and_texts
from regard.claims.figures import Figures, Finding
from regard.claims.hybrids import in_turn
from regard.compare.swap_report import text_loss
from regard.networks.infinitevl import infinitevl
from regard.networks.lm import LM
from regard.train.fit import Recipe
from regard.train.linearise import Distillation, linearise

WINDOW = 32
TESTED = 16_384
ARMS = {"linear": "gated_deltanet", "window": f"window(size={WINDOW})"}


def small(window: int) -> LM:
    """Two periods, the same every time."""
    return infinitevl(64, 64, 2, window, heads=2, head_dim=32, inner=64, seed=0).eval()


@measured()
def continued() -> dict[str, float]:
    """How far 300 tokens one by one are from one pass, over the largest logit, with a window of 64."""
    model, ids = small(64), torch.randint(64, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, state, outs = model(ids), model.start(1), []
        for token in ids.split(1, 1):
            out, state = model.extend(token, state)
            outs.append(out)
    return {"apart": ((torch.cat(outs, 1) - whole).abs().max() / whole.abs().max()).item()}


@measured()
def steady() -> dict[str, float]:
    """Bytes and a token's time after 32,768 tokens over those after 1,024, with a window of 512."""
    model: Any = small(512)
    ids = torch.randint(64, (1, 32_768), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = []
        for n in (1024, 32_768):
            state = model.start(1)
            for part in ids[:, :n].split(1024, 1):
                _, state = model.extend(part, state)
            states.append(state)
        one = ids[:, :1]
        ratio = in_turn(lambda: model.extend(one, states[1]), lambda: model.extend(one, states[0]), 31)
    return {"bytes": states[1].bytes / states[0].bytes, "ratio": ratio}


def does_not_grow(found: Figures) -> Finding:
    """Not a byte more, and within 5% of the time."""
    size, ratio = found.one("bytes"), found.one("ratio")
    figure = f"after 32,768 tokens {size:.2f} times the bytes and {ratio:.2f} times a token's time after 1,024"
    return Finding.of(figure, size == 1, abs(ratio - 1) <= 0.05)


@measured(arm=("whole", *ARMS), steps=[1000])
def distilled(arm: str, steps: int) -> dict[str, float]:
    """Nats a token at 512 tokens of regard-tiny whose attention sees 32 tokens, three of four layers made anew."""
    model, stream, held = model_and_texts()
    if arm != "whole":
        recipes = Recipe(steps, 2e-3), Recipe(steps, 1e-3)
        model = linearise(model, stream, ARMS[arm], window=WINDOW, distillation=Distillation(256, 2, *recipes))
    return {"loss": text_loss(model, held[:TESTED], 512, None)}


def keeps_more(found: Figures) -> Finding:
    """Less is lost with linear layers."""
    loss = {arm: found.one("loss", arm=arm) for arm in ("whole", *ARMS)}
    lost = {arm: loss[arm] - loss["whole"] for arm in ARMS}
    figure = f"loses {lost['linear']:.3f} nats a token of {loss['whole']:.3f}, with windows alone {lost['window']:.3f}"
    return Finding.of(figure, lost["linear"] < lost["window"])
