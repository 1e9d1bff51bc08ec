"""How much of a small language model's attention sinks into the first token, by how the model was trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from regard.analysis.base import Prompt
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding
from regard.claims.heads import by_position
from regard.claims.testbeds import source
from regard.networks.lm import LM, Config
from regard.train.fit import Recipe, fit

EPSILON, PLAIN = 0.3, {"mechanism": "softmax", "rate": 3e-3, "decay": 0.1, "batch": 16, "unique": 0}
"""The mean from which a key is a head's sink; the settings that others differ from in one thing."""
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rate 3e-4": {"rate": 3e-4},
    "rate 1e-2": {"rate": 1e-2},
    "no decay": {"decay": 0.0},
    "decay 0.5": {"decay": 0.5},
    "batch 4": {"batch": 4},
    "64 texts": {"unique": 64},
    "no positions": {"rotary": None},
    "no network": {"inner": 0},
    "key bias": {"mechanism": "key_bias"},
    "sigmoid": {"mechanism": "sigmoid"},
}
"""What each differs in; ``unique``: the number of different texts that are trained on, 0 for any."""


@quick(setting=["plain", "key bias"], seed=[0], steps=[40])
@measured(setting=tuple(SETTINGS), seed=range(2), steps=[400])
def grid(setting: str, seed: int, steps: int) -> dict[str, float]:
    """The share of heads whose sink is the first token, that of those whose sink is the learned key, and the loss.

    Settings as in the paper: rate of learning, weight decay, size of batches, amount of different data, positions,
    networks between the layers, and the learned key.
    """
    of = PLAIN | SETTINGS[setting]
    sizes: dict[str, Any] = {"rotary_base": of["rotary"]} if "rotary" in of else {}
    sizes |= {"inner": of["inner"]} if "inner" in of else {}
    model = LM(Config(source.VOCABULARY, 64, f"{of['mechanism']}*2", heads=4, **sizes), seed)
    codes = source.characters(False)
    few = source.windows(codes, of["unique"], 64, Generator().manual_seed(seed)) if of["unique"] else None

    def loss(ready: Any, generator: Generator) -> Tensor:
        if few is None:
            return ready.loss(source.windows(codes, of["batch"], 64, generator))
        return ready.loss(few[torch.randint(len(few), (of["batch"],), generator=generator)])

    fit(model, loss, Recipe(steps, of["rate"], decay=of["decay"], seed=seed))
    texts = source.windows(source.characters(True), 8, 64, Generator().manual_seed(7))
    with torch.no_grad():
        left = torch.stack([1 - maps.sum(3).mean(2) for maps in model.intermediates(texts).values()])
    first = by_position(model, [Prompt(ids) for ids in texts])[:, 0].mean()
    share = float((left > EPSILON).double().mean()) if setting == "key bias" else 0.0
    return {"first": float(first), "learned": share, "loss": source.held_out_loss(model, count=128)}


def depends_on_training(found: Figures) -> Finding:
    """Sinks are fewer with a tenth of the learning rate, and not more without weight decay, on average over seeds."""
    shares = {setting: found.mean("first", setting=setting) for setting in SETTINGS}
    told = ", ".join(f"{setting} {share:.0%}" for setting, share in shares.items())
    fewer = shares["rate 3e-4"] < shares["plain"]
    return Finding.of(f"heads whose sink is the first token: {told}", fewer, shares["no decay"] <= shares["plain"])
