"""Which heads gain by an edit: each is tried alone on examples, and the search goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from regard.core.edit import Edit
from regard.core.errors import wrong
from regard.hosts.attention_interface import host, label
from regard.hosts.calibrate import Answered
from regard.hosts.steer import steer

By = Literal["right", "log_probability"]
FILE = "heads.jsonl"


@dataclass(frozen=True)
class HeadSearch:
    """What an edit of one head at a time makes of examples.

    Args:
        base: the model without an edit: the share of answers that are right, and their mean log-probability a token.
        found: the same by ``(layer, head)``, each edited alone. by: which of the two decides.
    """

    base: tuple[float, float]
    found: dict[tuple[int, int], tuple[float, float]]
    by: By = "right"

    @property
    def gains(self) -> dict[tuple[int, int], float]:
        """By head, what it gains in the figure that decides."""
        at = 0 if self.by == "right" else 1
        return {head: values[at] - self.base[at] for head, values in self.found.items()}

    @property
    def heads(self) -> dict[int, list[int]]:
        """The heads that gain, as edits take them."""
        kept: dict[int, list[int]] = {}
        for (layer, head), gain in sorted(self.gains.items()):
            if gain > 0:
                kept.setdefault(layer, []).append(head)
        return kept


def search_heads(
    model: PreTrainedModel,
    make: Callable[[dict[int, list[int]]], Edit],
    examples: Sequence[Answered],
    layers: Iterable[int] | None = None,
    *,
    by: By = "right",
    folder: str | Path | None = None,
    report: Callable[[int, int, float], None] = lambda layer, head, gain: None,
) -> HeadSearch:
    """Tries an edit on each head alone, and finds those whose answers become better.

        found = search_heads(model, lambda heads: ACT(0.4, heads=heads), examples, range(2, 29), folder="search")
        with regard.steer(model, ACT(0.4, heads=found.heads)): …

    An answer is right where each of its tokens is the likeliest. Hold what is found to other examples: `calibrate`.

    Args:
        model: as for `regard.steer`, with a language model's logits. make: the edit of such heads. examples: what is to
            be said to what; ACT's authors take 900. layers: whose heads are tried, None for all; theirs are 2 … L − 2.
        by: what decides, the share of right answers or their log-probability. folder: keeps a line for each head, with
            which a search that was stopped goes on. report: told layer, head and gain.

    Raises:
        ValueError: no examples or layers; a folder of another search.
    """
    model = host(model)
    config: Any = model.config.get_text_config()
    chosen = list(range(config.num_hidden_layers) if layers is None else layers)
    if not examples or not chosen:
        raise wrong("examples, layers", f"{len(examples)}, {chosen}", "at least one of each")
    log = Log(folder, identity(model, make, examples))
    base = log.known.get((-1, -1)) or log.add((-1, -1), answered(model, examples))
    found = HeadSearch(base, {}, by)
    for layer in chosen:
        for head in range(config.num_attention_heads):
            place = layer, head
            values = log.known.get(place) or log.add(place, answered(model, examples, make({layer: [head]})))
            found.found[place] = values
            report(layer, head, found.gains[place])
    return found


@torch.no_grad()
def answered(model: PreTrainedModel, examples: Sequence[Answered], *edits: Edit) -> tuple[float, float]:
    """``(the share of right answers, the mean over them of the log-probability of a token)`` under an edit."""
    right, total = 0, 0.0
    with steer(model, *edits):
        for one in examples:
            ids = torch.cat([one.prompt, one.answer])[None].to(model.device)
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, -len(one.answer) :].float()
            wanted = one.answer.to(logits.device)
            right += bool((logits.argmax(-1) == wanted).all())
            total += logits.log_softmax(-1).gather(1, wanted[:, None]).mean().item()
    return right / len(examples), total / len(examples)


def identity(model: PreTrainedModel, make: Callable[[dict[int, list[int]]], Edit], examples: Sequence[Answered]) -> str:
    """What tells a search from others: its model, its edit and its examples."""
    texts = [[one.prompt.tolist(), one.answer.tolist()] for one in examples]
    weight = next(iter(model.parameters())).detach().float()
    told = [label(model), weight.sum().item(), repr(make({0: [0]})), texts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


class Log:
    """The lines of a search in a folder, or nowhere.

    Args:
        folder: of `FILE`; None for none. search: what tells it from others.

    Raises:
        ValueError: the lines are another search's.
    """

    def __init__(self, folder: str | Path | None, search: str) -> None:
        self.path = None if folder is None else Path(folder) / FILE
        self.search, self.known = search, {}
        lines = self.path.read_text().splitlines(keepends=True) if self.path is not None and self.path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]  # a run that was killed may leave a piece
        if any(row["search"] != search for row in whole):
            raise wrong("folder", f"{folder}, which is of another model, edit or examples", "its own, or a new one")
        self.known = {(row["layer"], row["head"]): (row["right"], row["log_probability"]) for row in whole}
        if self.path is not None and len(whole) < len(lines):
            self.path.write_text("".join(line for line in lines if line.endswith("\n")))

    def add(self, place: tuple[int, int], values: tuple[float, float]) -> tuple[float, float]:
        """Writes down what was found."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            row = {"search": self.search, "layer": place[0], "head": place[1]}
            row |= {"right": values[0], "log_probability": values[1]}
            with self.path.open("a") as log:
                log.write(json.dumps(row) + "\n")
        return values
