"""What models are trained on in a comparison: each task at one difficulty, with the attention pattern it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from regard.core.build import parse
from regard.core.errors import did_you_mean, wrong
from regard.networks.benchmark import Pattern
from regard.tasks import Copy, Induction
from regard.tasks.arena import ByteLM, ByteText, Pathfinder, Retrieval
from regard.tasks.associative import AssociativeRecall
from regard.tasks.listops import ListOps
from regard.tasks.lookup import Lookup
from regard.tasks.needles import Needle, VariableTracking, WordCount
from regard.train.tiny.corpus import read_corpus, read_packages

NETWORKING = ("email", "http", "urllib", "smtplib", "ftplib", "imaplib", "poplib", "socketserver", "xmlrpc", "wsgiref")
NUMBERS = ("statistics", "fractions", "_pydecimal", "random", "numbers", "datetime", "_pydatetime", "calendar")


@dataclass(frozen=True)
class TaskSetting:
    """A task as models are given it.

    Args:
        task: of training. tested: the same with what is held out, where that is not just another draw.
        length: tokens of an example. vocabulary: of the model. chance: what guessing gives. pattern: of the attention.
    """

    task: Any
    tested: Any
    length: int
    vocabulary: int
    chance: float
    pattern: Pattern = "causal self"


def plain(task: Any, length: int, pattern: Pattern = "causal self", vocabulary: int | None = None) -> TaskSetting:
    """A trial whose held-out examples are other draws."""
    return TaskSetting(task, task, length, vocabulary or task.vocabulary, task.chance, pattern)


def symbols(task: Any, length: int, count: int) -> TaskSetting:
    """A trial of a task over ``count`` ids, one of which is the answer."""
    return TaskSetting(task, task, length, count, 1 / count)


@cache
def library() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The standard library's documents to train on and those held out."""
    corpus = read_corpus()
    return corpus.train, corpus.held_out


def texts() -> TaskSetting:
    """Is it about networks or about numbers?"""
    sides = [ByteText((read_packages(NETWORKING, side), read_packages(NUMBERS, side))) for side in (False, True)]
    return TaskSetting(sides[0], sides[1], 128, ByteText.vocabulary, ByteText.chance)


def retrieval() -> TaskSetting:
    """Are both from one file?"""
    train, tested = library()
    return TaskSetting(Retrieval(train), Retrieval(tested), 131, Retrieval.vocabulary, Retrieval.chance)


def language() -> TaskSetting:
    """The next byte."""
    train, tested = library()
    return TaskSetting(ByteLM(train), ByteLM(tested), 128, ByteLM.vocabulary, ByteLM.chance)


TRIALS: dict[str, Callable[[], TaskSetting]] = {
    "recall": lambda: plain(AssociativeRecall(8, 64), 64),
    "induction": lambda: symbols(Induction(range(32)), 48, 32),
    "copy": lambda: symbols(Copy(range(16), (8, 24)), 48, 16),
    "needle": lambda: plain(Needle(), 64),
    "needle_multi_key": lambda: plain(Needle(needles=6, queries=2), 64),
    "variables": lambda: plain(VariableTracking(), 48),
    "common_words": lambda: plain(WordCount("common"), 48),
    "frequent_words": lambda: plain(WordCount("frequent"), 48),
    "listops": lambda: plain(ListOps(), 48),
    "pathfinder": lambda: plain(Pathfinder(), 12 * 12 + 2),
    "text": texts,
    "retrieval": retrieval,
    "lm": language,
    "masked_recall": lambda: plain(AssociativeRecall(8, 64), 64, "noncausal self", 65),
    "lookup": lambda: plain(Lookup(), 48, "noncausal cross", 65),
    "stream_lookup": lambda: plain(Lookup(stream=True), 48, "causal cross", 65),
}
"""Every task by its name. Those that are not causal self-attention say so."""


def task_setting(text: str) -> TaskSetting:
    """The trial of this name, changed by the arguments behind it, as ``recall(pairs=16, vocabulary=128, length=128)``.

    ``length`` is the trial's; all others are the task's own.

    Raises:
        LookupError: no such name. TypeError: an argument that the task does not take. ValueError: one it refuses.
    """
    name, arguments = parse(text)
    if name not in TRIALS:
        raise wrong("--task", repr(name), f"some of {', '.join(TRIALS)}{did_you_mean(name, TRIALS)}", LookupError)
    return changed(TRIALS[name](), name, arguments) if arguments else TRIALS[name]()


def changed(given: TaskSetting, name: str, arguments: dict[str, Any]) -> TaskSetting:
    """The trial with other arguments; vocabulary and chance follow the task's."""
    own = {key: value for key, value in arguments.items() if key != "length"}
    known = [field.name for field in fields(given.task)]
    for key in own:
        if key not in known:
            raise wrong(key, "an unknown argument", f"one of {name}'s: {', '.join(['length', *known])}", TypeError)
    task, tested = replace(given.task, **own), replace(given.tested, **own)
    more = given.vocabulary - getattr(given.task, "vocabulary", given.vocabulary)
    vocabulary = getattr(task, "vocabulary", given.vocabulary) + more
    chance = getattr(task, "chance", given.chance)
    return replace(
        given,
        task=task,
        tested=tested,
        length=arguments.get("length", given.length),
        vocabulary=vocabulary,
        chance=chance,
    )
