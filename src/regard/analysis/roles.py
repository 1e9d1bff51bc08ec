"""What each head of a model is for, and what it causes: the table behind `regard heads`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head, HeadAnalysis, HeadScores, Prompt, Result
from regard.analysis.corpus import over
from regard.analysis.head_importance import loss_rises, slopes
from regard.analysis.induction_heads import DuplicateTokenHeads, InductionHeads, PreviousTokenHeads, repeats
from regard.analysis.patching import ids_of
from regard.analysis.retrieval_heads import RetrievalHeads, answered, needles
from regard.analysis.sinks import SinkHeads, windows
from regard.core.errors import wrong
from regard.networks import LM

ROLES: dict[str, type[HeadAnalysis]] = {
    of.name: of for of in (RetrievalHeads, InductionHeads, PreviousTokenHeads, DuplicateTokenHeads, SinkHeads)
}
"""The analysis of each role."""
FORMAT, VERSION = "regard-heads", 1
TAKEN_OUT = 12
"""Heads whose causal number is exact, at most."""


@dataclass(frozen=True)
class Roles(Result):
    """The roles of a model's heads.

    Args:
        model: its name. scores: by role. estimates: by layer ``(heads,)``, change of the text's loss in nats a token
            where a head is taken out, to first order. rises: the exact change, for the heads that were taken out.
        notes: what was not measured, and why.
    """

    model: str
    scores: Mapping[str, HeadScores]
    estimates: Mapping[int, Tensor] = field(default_factory=dict)
    rises: Mapping[Head, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    name = "heads"

    def merge(self, other: Roles) -> Roles:
        """Scores over the prompts of both; causal numbers are of one text, so that they are left out.

        Raises:
            ValueError: another model, or other roles.
        """
        if (self.model, set(self.scores)) != (other.model, set(other.scores)):
            raise wrong("other", f"roles of {other.model}", f"the same roles of {self.model}")
        scores = {role: seen.merge(other.scores[role]) for role, seen in self.scores.items()}
        return Roles(self.model, scores, notes=tuple(dict.fromkeys(self.notes + other.notes)))

    def heads(self, role: str) -> list[Head]:
        """Those whose score reaches the role's threshold, the best first.

        Raises:
            ValueError: the role was not measured.
        """
        if role not in self.scores:
            raise wrong("role", repr(role), f"one of {', '.join(self.scores)}")
        return [(layer, head) for layer, head, _ in self.scores[role].ranked(ROLES[role].threshold)]

    def table(self) -> list[dict[str, Any]]:
        """A row a head: its roles, its scores, its causal numbers; None for what was not measured."""
        mine = {role: set(self.heads(role)) for role in self.scores}
        values = {role: seen.values for role, seen in self.scores.items()}
        rows = []
        for layer, count in sorted({at: len(row) for of in values.values() for at, row in of.items()}.items()):
            for head in range(count):
                row: dict[str, Any] = {"layer": layer, "head": head}
                row["roles"] = [role for role in self.scores if (layer, head) in mine[role]]
                row |= {role: number(of[layer][head]) if layer in of else None for role, of in values.items()}
                row["loss_estimate"] = number(self.estimates[layer][head]) if layer in self.estimates else None
                row["loss_rise"] = self.rises.get((layer, head))
                rows.append(row)
        return rows

    def save(self, path: str | Path) -> Path:
        """Writes the table as JSON, whole or not at all."""
        path = Path(path)
        thresholds = {role: ROLES[role].threshold for role in self.scores}
        about = {"format": FORMAT, "version": VERSION, "model": self.model, "thresholds": thresholds}
        passing = path.with_name(f".{path.name}.new")
        passing.write_text(json.dumps({**about, "notes": self.notes, "heads": self.table()}, indent=1), "utf-8")
        passing.replace(path)
        return path


def number(x: Tensor) -> float | None:
    """A float for JSON; None where there is none."""
    return None if math.isnan(float(x)) else float(x)


def load_roles(path: str | Path) -> dict[str, list[Head]]:
    """The heads of each role from a file that `Roles.save` wrote, the best first.

    Raises:
        ValueError: another file.
    """
    found: dict[str, list[tuple[float, Head]]] = {}
    for row in load_table(path):
        for role in row["roles"]:
            found.setdefault(role, []).append((-(row[role] or 0), (row["layer"], row["head"])))
    return {role: [head for _, head in sorted(found.get(role, []))] for role in thresholds(path)}


def load_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file that `Roles.save` wrote, as `Roles.table` gave them.

    Raises:
        ValueError: another file.
    """
    try:
        rows = read_saved(path)["heads"]
        if any({"layer", "head", "roles", *row["roles"]} - set(row) for row in rows):
            raise ValueError("rows without a layer, a head or the scores of their roles")
    except (ValueError, KeyError, TypeError) as error:
        raise no_table(path, error) from error
    return rows


def thresholds(path: str | Path) -> dict[str, float]:
    """The roles that such a file measured, with the scores from which a head has them."""
    try:
        return dict(read_saved(path)["thresholds"])
    except (ValueError, KeyError, TypeError) as error:
        raise no_table(path, error) from error


def read_saved(path: str | Path) -> dict[str, Any]:
    """The file's JSON, if it is of this format."""
    given = json.loads(Path(path).read_text("utf-8"))
    if not isinstance(given, dict) or (given.get("format"), given.get("version")) != (FORMAT, VERSION):
        raise ValueError("another format")
    return given


def no_table(path: str | Path, error: Exception) -> Exception:
    return wrong("path", f"{path} ({error})", "a table that `regard heads` wrote")


def heads(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[int] | Tensor | Sequence[str],
    *,
    causal: bool = True,
    lengths: Sequence[int] = (256, 512),
    seed: int = 0,
    name: str | None = None,
    store: str | Path | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Roles:
    """What every head of a causal language model is for, by its papers' own stimuli, and what it causes.

    Retrieval by needles that the model answers; induction, previous and same token on repeated random tokens; sinks on
    windows of 64 tokens of the text. The causal columns are of the text: the change of its loss where a head is taken
    out, to first order for all, and exactly for those that have a role, the best `TAKEN_OUT` of them.

    Args:
        model: a Transformers model with logits. tokenizer: its own; None leaves retrieval out.
        text: at least two tokens; under 64 sinks are left out. Of several texts sinks are measured in all, and the
            causal columns are of the first. causal: with the causal columns.
        lengths: of the needles' prompts. seed: of the draws. name: of the model in the table.
        store: a folder that keeps the scores of each prompt, so that a run that was stopped goes on. progress: told
            what is done.

    Raises:
        ValueError: a text that is too short, or a model that gives no logits.
    """
    if isinstance(model, LM) or not model.can_generate():
        raise wrong("model", type(model).__name__, "a causal language model of Transformers")
    texts: list[Any] = list(text) if several(text) else [text]
    every = [ids_of(tokenizer, one) for one in texts]
    ids = every[0] if every else torch.tensor([])
    if len(ids) < 2:
        raise wrong("text", f"{len(ids)} token{'s' * (len(ids) != 1)}", "at least two")
    scores, notes = dict[str, HeadScores](), list[str]()
    progress("sinks")
    sinks = SinkHeads()
    cuts: list[Prompt] = [cut for one in every if len(one) >= sinks.tokens for cut in windows(one, sinks.tokens)]
    if cuts:
        scores |= over([sinks], model, cuts, store)
    else:
        longest = max(map(len, every))
        notes.append(f"sink was not measured: the text has {longest} tokens, and it takes windows of {sinks.tokens}")
    progress("induction")
    start = None if tokenizer is None else tokenizer.bos_token_id
    random_texts = repeats(model.config.get_text_config().vocab_size, seed=seed, start=start)
    scores |= over([InductionHeads(), PreviousTokenHeads(), DuplicateTokenHeads()], model, random_texts, store)
    if tokenizer is None:
        notes.append("retrieval was not measured: there is no tokenizer to write needles with")
    else:
        progress("retrieval")
        asked = needles(tokenizer, lengths, seed=seed)
        runs = list(answered(model, asked))
        if runs:
            scores |= over([RetrievalHeads()], model, runs, store)
        else:
            notes.append(f"retrieval was not measured: the model recalled none of {len(asked)} needles")
        if 0 < len(runs) < len(asked):
            notes.append(f"the model recalled {len(runs)} of {len(asked)} needles; retrieval is measured on those")
    found = Roles(name or model.config.name_or_path or type(model).__name__, in_order(scores), notes=tuple(notes))
    if not causal:
        return found
    progress("causal effects")
    return replace(found, **effects(model, ids, found))


def several(text: Any) -> bool:
    """Whether it is a list of texts, and not one of token ids."""
    return not isinstance(text, str | Tensor) and len(text) > 0 and isinstance(text[0], str)


def in_order(scores: Mapping[str, HeadScores]) -> dict[str, HeadScores]:
    """The scores in the order of `ROLES`."""
    return {role: scores[role] for role in ROLES if role in scores}


def effects(model: Any, ids: Tensor, found: Roles) -> dict[str, Any]:
    """The causal columns."""
    estimates = {layer: -dots.sum(1).double() / (len(ids) - 1) for layer, dots in slopes(model, ids).items()}
    chosen: dict[Head, None] = {}
    for rank in range(TAKEN_OUT):
        for role in found.scores:
            chosen |= dict.fromkeys(found.heads(role)[rank : rank + 1])
    rises = loss_rises(model, [ids], list(chosen)[:TAKEN_OUT])
    return {"estimates": estimates, "rises": {head: float(rise[0]) for head, rise in rises.items()}}
