"""What each head of a model is for, and what it causes: the table behind `regard heads`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head, HeadAnalysis, HeadScores, Prompt, Result
from regard.analysis.corpus import HeadScorer, over
from regard.analysis.in_texts import STATISTICS, LossEstimate, LossRise, RowStatistic
from regard.analysis.induction_heads import DuplicateTokenHeads, InductionHeads, PreviousTokenHeads, repeats
from regard.analysis.patching import ids_of
from regard.analysis.retrieval_heads import RetrievalHeads, answered, needles
from regard.analysis.sinks import SinkHeads, windows
from regard.core.errors import wrong
from regard.core.files import write_text
from regard.experiments.run import LOCAL, cluster
from regard.hosts.small import title
from regard.networks import LM

ROLES: dict[str, type[HeadAnalysis]] = {
    of.name: of for of in (RetrievalHeads, InductionHeads, PreviousTokenHeads, DuplicateTokenHeads, SinkHeads)
}
"""The analysis of each role."""
FORMAT, VERSION = "regard-heads", 1
TAKEN_OUT = 12
"""Heads whose causal number is exact, at most."""
CAUSES = ("loss_estimate", "loss_rise")
IN_TEXTS = (*(probe.name for probe in STATISTICS), *CAUSES)
"""Columns of what is measured in the given texts."""


@dataclass(frozen=True)
class Roles(Result):
    """The roles of a model's heads.

    Args:
        model: its name. scores: by role. in_texts: by name what heads do in the given texts, the entropy and the
            distance of their rows, and what the texts' loss owes to them: ``loss_estimate``, its change in nats a token
            where a head is taken out, to first order, and ``loss_rise``, the exact change, for heads that were.
        notes: what was not measured, and why. texts: how many were given.
    """

    model: str
    scores: Mapping[str, HeadScores]
    in_texts: Mapping[str, HeadScores] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    texts: int = 1

    name = "heads"

    def merge(self, other: Roles) -> Roles:
        """What both have seen; of rises those of heads that both took out.

        Raises:
            ValueError: another model, or other roles.
        """
        if (self.model, set(self.scores)) != (other.model, set(other.scores)):
            raise wrong("other", f"roles of {other.model}", f"the same roles of {self.model}")
        scores = {role: seen.merge(other.scores[role]) for role, seen in self.scores.items()}
        both = {
            name: seen.merge(other.in_texts[name]) for name, seen in self.in_texts.items() if name in other.in_texts
        }
        if "loss_rise" in both:
            both["loss_rise"] = only(both["loss_rise"], self.rises.keys() & other.rises.keys())
        notes = tuple(dict.fromkeys(self.notes + other.notes))
        return Roles(self.model, scores, both, notes, self.texts + other.texts)

    @property
    def rises(self) -> dict[Head, float]:
        """``loss_rise`` of the heads that were taken out."""
        found = self.in_texts.get("loss_rise")
        return {} if found is None else {(at, h): x for at, h, x in found.ranked() if not math.isnan(x)}

    def heads(self, role: str) -> list[Head]:
        """Those whose score reaches the role's threshold, the best first.

        Raises:
            ValueError: the role was not measured.
        """
        if role not in self.scores:
            raise wrong("role", repr(role), f"one of {', '.join(self.scores)}")
        return [(layer, head) for layer, head, _ in self.scores[role].ranked(ROLES[role].threshold)]

    def table(self) -> list[dict[str, Any]]:
        """A row a head: its roles, its scores, what it does and causes in the texts; None for what was not measured.

        Errors are those of a mean over several texts.
        """
        mine = {role: set(self.heads(role)) for role in self.scores}
        known = {**self.scores, **self.in_texts}
        values = {name: seen.values for name, seen in known.items()}
        errors = {name: errors_of(self.in_texts[name]) for name in CAUSES if name in self.in_texts and self.texts > 1}
        rows = []
        for layer, count in sorted({at: len(row) for of in values.values() for at, row in of.items()}.items()):
            for head in range(count):
                row: dict[str, Any] = {"layer": layer, "head": head}
                row["roles"] = [role for role in self.scores if (layer, head) in mine[role]]
                for name in (*self.scores, *IN_TEXTS):
                    row[name] = cell(values.get(name, {}), layer, head)
                row |= {f"{name}_error": cell(errors.get(name, {}), layer, head) for name in CAUSES}
                rows.append(row)
        return rows

    def save(self, path: str | Path) -> Path:
        """Writes the table as JSON, whole or not at all."""
        path = Path(path)
        thresholds = {role: ROLES[role].threshold for role in self.scores}
        about = {"format": FORMAT, "version": VERSION, "model": self.model, "texts": self.texts}
        about["thresholds"] = thresholds
        write_text(path, json.dumps({**about, "notes": self.notes, "heads": self.table()}, indent=1))
        return path


def cell(values: Mapping[int, Tensor], layer: int, head: int) -> float | None:
    """A head's number for JSON; None where there is none."""
    x = float(values[layer][head]) if layer in values else math.nan
    return None if math.isnan(x) else x


def errors_of(scores: HeadScores) -> dict[int, Tensor]:
    """Standard errors of means over texts, by layer ``(heads,)``."""
    return {layer: of.estimate().error for layer, of in scores.moments.items()}


def only(scores: HeadScores, heads: Iterable[Head]) -> HeadScores:
    """The scores of these heads; of others in their layers, none."""
    kept, moments = set(heads), {}
    for layer, of in scores.moments.items():
        mine = torch.tensor([(layer, head) in kept for head in range(len(of.total))])
        moments[layer] = replace(of, count=torch.where(mine, of.count, 0.0))
    return replace(scores, moments=moments)


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
    text: str | Sequence[int] | Tensor | Sequence[str] | Sequence[Sequence[int]],
    *,
    causal: bool = True,
    lengths: Sequence[int] = (256, 512),
    seed: int = 0,
    name: str | None = None,
    store: str | Path | None = None,
    workers: str = LOCAL,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Roles:
    """What every head of a causal language model is for, by its papers' own stimuli, and what it causes.

    Retrieval by needles that the model answers; induction, previous and same token on repeated random tokens; sinks on
    windows of 64 tokens of the text. In the text itself the entropy and the distance of the heads' rows, and the causal
    columns: the change of its loss where a head is taken out, to first order for all, and exactly for those that have a
    role, the best `TAKEN_OUT` of them. Of many texts all these are means over them.

    Args:
        model: a Transformers model with logits. tokenizer: its own; None leaves retrieval out.
        text: at least two tokens; under 64 sinks are left out. A list of texts is many of them.
        causal: with the causal columns. lengths: of the needles' prompts. seed: of the draws. name: of the model in
            the table. store: a folder that keeps what is found in each text, so that a run that was stopped goes on.
        workers: ``local``, ``ray`` or ``ray:ADDRESS``, as in `corpus.over`. progress: told what is being done, how
            many texts of it are, and of how many.

    Raises:
        ValueError: a text that is too short, or a model that gives no logits.
    """
    if isinstance(model, LM) or not model.can_generate():
        raise wrong("model", type(model).__name__, "a causal language model of Transformers")
    texts = prompts(tokenizer, text)

    def measured(what: str, analyses: Sequence[HeadScorer], data: Iterable[Prompt]) -> dict[str, HeadScores]:
        progress(what, 0, 0)
        return over(analyses, model, data, store, lambda done, total: progress(what, done, total), workers)

    with cluster(workers):
        scores, notes = dict[str, HeadScores](), list[str]()
        sinks = SinkHeads()
        cuts = [cut for one in texts if len(one.ids) >= sinks.tokens for cut in windows(one.ids, sinks.tokens)]
        if cuts:
            scores |= measured("sinks", [sinks], cuts)
        else:
            longest = max(len(one.ids) for one in texts)
            which = "the text" if len(texts) == 1 else "the longest text"
            notes.append(f"sink was not measured: {which} has {longest} tokens, and it takes windows of {sinks.tokens}")
        start = None if tokenizer is None else tokenizer.bos_token_id
        random_texts = repeats(model.config.get_text_config().vocab_size, seed=seed, start=start)
        scores |= measured("induction", [InductionHeads(), PreviousTokenHeads(), DuplicateTokenHeads()], random_texts)
        if tokenizer is None:
            notes.append("retrieval was not measured: there is no tokenizer to write needles with")
        else:
            progress("retrieval: asking for needles", 0, 0)
            asked = needles(tokenizer, lengths, seed=seed)
            runs = list(answered(model, asked))
            if runs:
                scores |= measured("retrieval", [RetrievalHeads()], runs)
            else:
                notes.append(f"retrieval was not measured: the model recalled none of {len(asked)} needles")
            if 0 < len(runs) < len(asked):
                notes.append(f"the model recalled {len(runs)} of {len(asked)} needles; retrieval is measured on those")
        reading: list[HeadScorer] = [RowStatistic(probe) for probe in STATISTICS]
        seen = measured("the texts", [*reading, LossEstimate()] if causal else reading, texts)
        called = name or title(model.config.name_or_path) or type(model).__name__
        found = Roles(called, in_order(scores), seen, tuple(notes), len(texts))
        chosen = leading(found) if causal else []
        if not chosen:
            return found
        counts = {layer: len(row) for layer, row in seen["entropy"].values.items()}
        return replace(found, in_texts=seen | measured("causal effects", [LossRise(chosen, counts)], texts))


def prompts(tokenizer: Any, text: Any) -> list[Prompt]:
    """The texts as tokens.

    Raises:
        ValueError: one of them is too short, or there is none.
    """
    texts = list(text) if several(text) else [text]
    found = [Prompt(ids_of(tokenizer, one)) for one in texts]
    for place, one in enumerate(found):
        if len(one.ids) < 2:
            which = f", the text at {place} of {len(found)}" if len(found) > 1 else ""
            raise wrong("text", f"{len(one.ids)} token{'s' * (len(one.ids) != 1)}{which}", "at least two")
    return found


def several(text: Any) -> bool:
    """Whether it is a list of texts, written or as token ids, and not the token ids of one."""
    return not isinstance(text, str | Tensor) and len(text) > 0 and not isinstance(text[0], int)


def in_order(scores: Mapping[str, HeadScores]) -> dict[str, HeadScores]:
    """The scores in the order of `ROLES`."""
    return {role: scores[role] for role in ROLES if role in scores}


def leading(found: Roles) -> list[Head]:
    """The heads that lead the roles, `TAKEN_OUT` of them at most."""
    chosen: dict[Head, None] = {}
    for rank in range(TAKEN_OUT):
        for role in found.scores:
            chosen |= dict.fromkeys(found.heads(role)[rank : rank + 1])
    return list(chosen)[:TAKEN_OUT]
