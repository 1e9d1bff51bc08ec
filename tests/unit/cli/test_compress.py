"""`regard compress` end to end, what it advises, and what it says of bad input."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from regard.cli import app
from regard.compare.cache_report import Kept, advice, continuations, needles
from regard.hosts import small

TINY = ("--model", "tiny", "--length", "96", "--prompts", "2")


def compressed(*arguments: str):
    return CliRunner().invoke(app, ["compress", *TINY, *arguments])


def test_policies_are_measured_beside_the_full_cache(tmp_path):
    out = tmp_path / "rows.json"
    done = compressed(
        "--policies", "random,snapkv(window=4, kernel=3)", "--budgets", "0.25,12", "--json", "-o", str(out)
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout[done.stdout.index("{") :])["rows"]
    assert [(r["policy"], r["budget"]) for r in rows[:5]] == [
        ("full", "all"),
        ("random", "0.25"),
        ("snapkv(window=4, kernel=3)", "0.25"),
        ("random", "12"),
        ("snapkv(window=4, kernel=3)", "12"),
    ]
    by = {(r["policy"], r["budget"], r["known"]): r for r in rows}
    assert by["random", "0.25", True]["bytes"] == by["snapkv(window=4, kernel=3)", "0.25", True]["bytes"]
    assert (
        by["random", "12", False]["bytes"]
        < by["random", "0.25", False]["bytes"]
        < by["full", "all", False]["bytes"] / 3
    )
    assert by["full", "all", True]["nats"] == pytest.approx(by["full", "all", False]["nats"], rel=1e-3)
    assert len(json.loads(out.read_text())) == 2 * 2 * 5


def test_a_table_and_an_advice_for_so_much_memory():
    done = compressed("--policies", "random,streaming", "--advise", "200KiB", "--task", "text")
    assert done.exit_code == 0, done.output
    assert "--prompts 2: too few for advice, which takes 6 or more; measured all the same" in done.stderr
    told = " ".join(done.stdout.split())
    assert "none is recommended: 2 prompts are too few, give --prompts 6 or more; the best so far, streaming at" in told
    assert all(size in told for size in ("50KiB", "100KiB", "200KiB"))
    assert "read, step: CPU time" in told


def test_too_few_prompts_are_said_before_a_model_is_read():
    for prompts, said in ((5, True), (6, False)):
        done = compressed("--model", "/nowhere", "--advise", "1MiB", "--prompts", str(prompts))
        assert done.exception is not None
        assert ("too few for advice" in done.stderr) == said
    assert "too few" not in compressed("--model", "/nowhere").stderr


def test_an_advice_leaves_out_what_has_no_room():
    ways = ("--policies", "random,streaming(sinks=40)", "--task", "text", "--advise", "800KiB")
    done = compressed(*ways)
    assert done.exit_code == 0, done.output
    told = " ".join(done.stdout.split())
    assert re.search(
        r"left out: streaming\(sinks=40\) at 200KiB, of \d+ tokens a head in some layer, of which it", told
    )
    done = compressed(*ways[:-2], "--budgets", "20")
    assert "--budgets: got streaming(sinks=40) at 20, of 20 tokens a head" in str(done.exception)


def test_what_each_head_keeps_is_written_down(tmp_path):
    out = tmp_path / "kept.json"
    done = compressed("--policies", "streaming,tova", "--budgets", "9", "--question", "unknown", "--kept", str(out))
    assert done.exit_code == 0, done.output
    first, second = json.loads(out.read_text())
    assert (first["policy"], first["budget"], first["known"]) == ("streaming", "9", False)
    n = len(first["tokens"])
    assert first["kept"] == [[[0, 1, 2, 3, *range(n - 5, n)]] * len(first["kept"][0])] * len(first["layers"])
    assert {len(at) for heads in second["kept"] for at in heads} == {9}
    assert second["kept"] != first["kept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "needles"), "--task: got 'needles', want one of needle, text (did you mean 'needle'?)"),
        (("--question", "open"), "--question: got 'open'"),
        (("--policies", "snapvk"), "policy: got 'snapvk'"),
        (("--budgets", "half"), "budget: got 'half'"),
        (("--advise", "512"), "--advise: got '512', want bytes"),
        (("--advise", "1MiB", "--policies", "tova,h2o"), "--policies: got 'tova,h2o', want random and another one"),
        (("--advise", "1MiB", "--policies", "random"), "--policies: got 'random', want random and another one"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    assert message in str(compressed(*arguments).exception)


def rows_of(policy: str, *nats: float) -> list[Kept]:
    return [Kept(policy, "8", True, index, 0.5, value, 100, 1.0, 0.0) for index, value in enumerate(nats)]


def test_advice_needs_evidence():
    full, random = rows_of("full", *[0.1] * 6), rows_of("random", *[3.0, 3.1, 2.9] * 2)
    full = [replace(row, budget="all", bytes=900) for row in full]
    good, lucky = rows_of("good", *[1.0, 1.3, 1.1] * 2), rows_of("lucky", *[0.1, 5.0, 3.8] * 2)
    assert advice(full + random + good + lucky, True).policy == "good"
    told = str(advice(full + random + good, True))
    assert told.startswith("take good at 8: 6 prompts, question known: 50% of the answer right")
    assert "0.0 of 0.0 MB; a step takes 1.00× the full cache's" in told
    unsure = advice(full + random + lucky, True)
    assert not unsure.policy
    assert str(unsure).startswith("none is recommended: the best, lucky at 8, is not surely above random")
    few = advice([row for row in full + random + good if row.prompt < 5], True)
    assert str(few).startswith("none is recommended: 5 prompts are too few")
    with pytest.raises(ValueError, match=r"^policies: got 0 ways within 50 bytes, want random and another"):
        advice(full + random + good, True, memory=50)
    with pytest.raises(ValueError, match="want random and another policy"):
        advice(full + good, True)


def test_advice_takes_the_smallest_budget_that_does_as_well():
    full, random = rows_of("full", *[0.1] * 6), rows_of("random", *[3.0, 3.1, 2.9] * 2)
    full, good = [replace(row, budget="all", bytes=900) for row in full], rows_of("good", *[1.0, 1.3, 1.1] * 2)
    for loss, size in ((0.05, "4"), (0.2, "8")):
        less = [replace(row, budget="4", bytes=50, nats=row.nats + loss) for row in good + random]
        assert advice(full + random + good + less, True).budget == size
    assert advice(full + random + good + less, True, memory=60).budget == "4"


def test_prompts_have_their_length_and_hold_their_answer():
    _, tokenizer = small.load("tiny")
    for prompt in needles(tokenizer, 200, 3, seed=2):
        assert len(prompt.context) + len(prompt.question) == 200
        assert tokenizer.decode(prompt.answer) in tokenizer.decode(prompt.context)
    for prompt in continuations(tokenizer, 50, 2):
        assert [len(part) for part in (prompt.context, prompt.question, prompt.answer)] == [49, 1, 64]
