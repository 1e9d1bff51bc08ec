"""The table of heads: what the shipped model's are for and cause, kept as JSON; needles; gradients against removal."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

import regard
from regard.analysis.base import DenseMaps, HeadScores, Prompt, WatchedModel, run_together, sample_moments
from regard.analysis.corpus import over
from regard.analysis.head_gates import CausalHeadGating, HeadGates
from regard.analysis.head_importance import HeadImportance, loss_rises, ordered, slopes, text_loss
from regard.analysis.planted import planted_model
from regard.analysis.retrieval_heads import Needle, manual, needles, recalled
from regard.analysis.roles import Roles, load_roles
from regard.analysis.sinks import SinkHeads
from regard.edits import HeadAblation
from regard.hosts import small
from regard.hosts.attach import attach


@pytest.fixture(scope="module")
def tiny():
    return small.load("tiny")


@pytest.fixture(scope="module")
def found(tiny):
    return regard.heads(*tiny, small.SAMPLE.read_text()[:700], lengths=[96])


def test_the_shipped_models_heads_have_their_roles(found):
    assert (3, 2) in found.heads("induction") or (3, 1) in found.heads("induction")
    assert found.heads("previous_token")
    table = found.table()
    assert len(table) == 32
    assert all(row["loss_estimate"] is not None for row in table)
    measured = [row for row in table if row["loss_rise"] is not None]
    assert 0 < len(measured) <= 12
    assert all(row["roles"] for row in measured)
    assert "the model recalled" in " ".join(found.notes)


def test_the_table_is_kept_whole(found, tmp_path):
    path = found.save(tmp_path / "roles.json")
    assert load_roles(path) == {role: found.heads(role) for role in found.scores}
    assert json.loads(path.read_text())["heads"] == found.table()
    path.write_text('{"format": "regard-heads", "version": 9}')
    with pytest.raises(ValueError, match=r"path: got .*want a table that `regard heads` wrote"):
        load_roles(path)


def test_roles_merge_by_prompts_and_refuse_other_models():
    def roles(model: str, values: list[list[float]], rises: list[float] | None = None) -> Roles:
        scores = {"sink": HeadScores("sink", sample_moments({0: torch.tensor(values)}))}
        causes = (
            {} if rises is None else {"loss_rise": HeadScores("loss_rise", sample_moments({0: torch.tensor([rises])}))}
        )
        return Roles(model, scores, causes)

    both = roles("a", [[1.0, 0.0]], [0.5, 2.0]).merge(roles("a", [[0.0, 0.0], [1.0, 0.0]], [1.5, math.nan]))
    assert both.scores["sink"].values[0].tolist() == [2 / 3, 0]
    assert both.heads("sink") == [(0, 0)]
    assert both.rises == {(0, 0): 1.0}  # the other head was taken out in one of them alone
    assert both.texts == 2
    assert roles("a", [[1.0, 0.0]], [0.5, 2.0]).merge(roles("a", [[1.0, 0.0]])).rises == {}
    with pytest.raises(ValueError, match="other: got roles of b"):
        roles("a", [[1.0, 0.0]]).merge(roles("b", [[1.0, 0.0]]))
    with pytest.raises(ValueError, match="role: got 'copying', want one of sink"):
        both.heads("copying")


def test_the_causal_columns_are_of_gates_and_of_removal(tiny, found):
    model = tiny[0]
    ids = torch.tensor(tiny[1](small.SAMPLE.read_text()[:700]).input_ids)
    (layer, head), rise = next(iter(found.rises.items()))
    with torch.no_grad():
        whole = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
        with attach(model, edits=[HeadAblation({layer: [head]})]):
            without = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
    assert abs(float(without - whole) - rise) < 1e-5
    assert abs(found.rises[layer, head] - float(loss_rises(model, [ids], [(layer, head)])[layer, head][0])) < 1e-6


def test_gradients_do_not_stay(tiny):
    ids = torch.randint(1, 2048, (19,), generator=torch.Generator().manual_seed(0))
    slopes(tiny[0], ids)
    assert all(p.requires_grad and p.grad is None for p in tiny[0].parameters())


def test_importance_is_normalised_in_each_layer():
    texts = [Prompt(torch.arange(1, 14)), Prompt(torch.arange(5, 25))]
    scores = HeadImportance().run(planted_model(), texts)
    raw, normed = ordered(scores, by_norm=False), ordered(scores)
    assert set(raw[:4]) == {(0, 0), (0, 2), (1, 1), (1, 2)}
    assert set(normed[-2:]) == {(0, 1), (1, 0)}
    dots = (
        slopes(planted_model(), texts[0].ids)[0][1].abs().sum()
        + slopes(planted_model(), texts[1].ids)[0][1].abs().sum()
    )
    assert abs(scores.of((0, 1)) - float(dots) / 33) < 1e-9


def test_a_head_that_says_nothing_can_go():
    model, texts = planted_model(), [torch.arange(3, 21)]
    silent, whole = [(0, 0), (0, 2), (1, 1), (1, 2)], text_loss(planted_model(), texts)
    torch.testing.assert_close(text_loss(model, texts, silent), whole)
    assert float((text_loss(model, texts, [(0, 1)]) - whole).abs()) > 1e-4


def test_open_gates_are_the_model():
    model, ids = planted_model(), torch.arange(3, 21)[None]
    with torch.no_grad():
        whole = model(ids).logits
        with attach(model, edits=[HeadGates(torch.ones(2, 3))]):
            torch.testing.assert_close(model(ids).logits, whole)
        shut = torch.ones(2, 3)
        shut[0, 1] = 0
        with attach(model, edits=[HeadGates(shut)]):
            gated = model(ids).logits
        with attach(model, edits=[HeadAblation({0: [1]})]):
            torch.testing.assert_close(model(ids).logits, gated)


def test_gates_tell_a_helper_from_a_noise_head():
    """A model fitted through one head, with noise planted in another: the first stays open, the other is shut."""
    model, draw = planted_model([(0, 1)]), torch.Generator().manual_seed(1)
    block = torch.randint(0, 29, (24, 5), generator=draw)
    prompts = [Prompt(torch.cat([row, row[:1]]), answer=5) for row in block]  # the first token is said again
    ids = torch.stack([prompt.ids for prompt in prompts])
    descent = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(90):
        descent.zero_grad()
        cross_entropy(model(ids).logits[:, 4], ids[:, 5]).backward()
        descent.step()
    with torch.no_grad():
        noisy = model.model.layers[1].self_attn.o_proj.weight
        noisy[:, 6:12] = 3 * torch.randn(18, 6, generator=draw, dtype=torch.float64)
    found = CausalHeadGating(steps=30, batch=24).run(model, prompts)
    assert float(found.interfering[1, 1]) > 0.8
    assert float(found.facilitating[1, 1]) < 0.2
    total = found.facilitating + found.irrelevant + found.interfering
    assert bool((total >= 1 - 1e-9).all())  # they add up to one but for what is both open and shut


def test_needles_lie_where_they_are_said_to(tiny):
    tokenizer = tiny[1]
    for prompt in needles(tokenizer, [200, 301], (0.0, 0.4, 1.0), seed=3):
        assert prompt.answer == len(prompt.ids) in (200, 301)
        assert prompt.needle is not None
        secret = tokenizer.decode(prompt.ids[slice(*prompt.needle)]).strip()
        assert secret.isdigit()
        assert len(secret) == 5
        assert f"The special code is {secret}." in tokenizer.decode(prompt.ids)
        whole = torch.cat([prompt.ids, prompt.ids[slice(*prompt.needle)]])
        assert recalled(prompt, whole) == 1
        assert recalled(prompt, torch.cat([prompt.ids, prompt.ids[prompt.needle[0] : prompt.needle[0] + 1]])) < 1
    with pytest.raises(ValueError, match="lengths: got 20"):
        needles(tokenizer, [20])
    empty = Needle("", "", "", 5)  # a start and the tokens of five digits: no room for a haystack, or room for one
    least = 1 + len(tokenizer(" 49915", add_special_tokens=False)["input_ids"])
    with pytest.raises(ValueError, match=f"lengths: got {least}"):
        needles(tokenizer, [least], (0.0,), needle=empty)
    assert len(needles(tokenizer, [least + 1], (0.0,), needle=empty)) == 1
    with pytest.raises(ValueError, match="lengths: got 500"):
        needles(tokenizer, [500], haystack="too short", needle=Needle(digits=3))
    assert len(manual()) > 9000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "data: got 0 prompts"),
        ([Prompt(torch.arange(5))], "data: got 1 prompts"),
        ([Prompt(torch.arange(5), answer=5)], "data"),
    ],
)
def test_gating_wants_answers(data, said):
    with pytest.raises(ValueError, match=said):
        CausalHeadGating(1).run(planted_model(), data)


def test_what_has_no_words_has_no_heads_table(tiny):
    with pytest.raises(ValueError, match="model: got BertModel, want a causal language model"):
        regard.heads(*small.load("minilm"), "a b c")
    with pytest.raises(ValueError, match="text: got 1 token, want at least two"):
        regard.heads(tiny[0], None, [3])


def test_what_a_short_text_cannot_say_is_named(tiny, tmp_path):
    """Sinks take windows of 64 tokens; everything else is measured, and the table says what is not."""
    found = regard.heads(tiny[0], None, [3, 4, 5, 9, 11])
    assert found.notes[0] == "sink was not measured: the text has 5 tokens, and it takes windows of 64"
    assert "retrieval was not measured" in found.notes[1]
    assert set(found.scores) == {"induction", "previous_token", "duplicate_token"}
    assert all(row["loss_estimate"] is not None for row in found.table())
    assert "sink" not in load_roles(found.save(tmp_path / "heads.json"))


def test_many_texts_merge_and_a_stopped_run_goes_on(tiny, tmp_path, monkeypatch):
    """Text by text into a store, and from it: in another order, with one more, which alone is passed through."""
    model, _ = tiny
    texts = [Prompt(torch.randint(2048, (64,), generator=torch.Generator().manual_seed(i))) for i in range(4)]
    whole, shown = run_together([SinkHeads()], model, texts)["sink"], []
    over([SinkHeads()], model, texts[:3], tmp_path / "kept")
    show = WatchedModel.show
    monkeypatch.setattr(WatchedModel, "show", lambda self, *given: shown.append(1) or show(self, *given))
    found = over([SinkHeads()], model, [texts[2], texts[0], texts[3], texts[1]], tmp_path / "kept")["sink"]
    assert len(shown) == 1
    for layer, of in whole.moments.items():
        for part in ("count", "population", "total", "squares"):
            torch.testing.assert_close(getattr(found.moments[layer], part), getattr(of, part).double())
    over([SinkHeads(epsilon=0.2)], model, texts[:1], tmp_path / "kept")
    assert len(shown) == 2  # another threshold is another analysis
    over([SinkHeads()], model, texts[:1] * 3, tmp_path / "kept", lambda done, total: shown.append((done, total)))
    assert shown[2:] == [(3, 3)]  # a text that is there three times counts three times, and is read once at most
    with pytest.raises(TypeError, match="store: got one for a DenseMaps"):
        over([SinkHeads()], DenseMaps(lambda ids: []), texts, tmp_path / "other")
    with pytest.raises(ValueError, match="data: got no prompts"):
        over([SinkHeads()], model, [])


def test_of_many_texts_each_column_is_a_mean_over_them(tiny, tmp_path, monkeypatch):
    """Entropies pool rows; losses count every text once, and have an error; a run that was stopped goes on."""
    model, tokenizer = tiny
    texts = [small.SAMPLE.read_text()[start : start + size] for start, size in ((0, 310), (500, 230), (900, 270))]

    def found(which, **given):
        return regard.heads(model, None, [tokenizer(texts[i]).input_ids for i in which], store=tmp_path, **given)

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("the texts", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found([0, 1, 2], progress=stop)
    passes, told = [], []
    show = WatchedModel.show
    monkeypatch.setattr(WatchedModel, "show", lambda self, ids, *given: passes.append(ids) or show(self, ids, *given))
    whole = found([2, 0, 1], progress=lambda *step: told.append(step))
    assert [one.tolist() for one in passes] == [[tokenizer(texts[2]).input_ids]]  # all else is there
    assert told[-1] == ("causal effects", 3, 3)
    one, two = found([0]), found([1, 2])
    both = one.merge(two)
    assert (whole.texts, both.texts) == (3, 3)
    for name in ("entropy", "distance", "loss_estimate"):
        for layer, values in whole.in_texts[name].values.items():
            torch.testing.assert_close(both.in_texts[name].values[layer], values)
    for head in both.rises.keys() & whole.rises.keys():
        assert both.rises[head] == pytest.approx(whole.rises[head])
    rows = {(row["layer"], row["head"]): row for row in whole.table()}
    (layer, head), rise = next(iter(whole.rises.items()))
    each = [float(loss_rises(model, [text], [(layer, head)])[layer, head][0]) for text in tokens(tokenizer, texts)]
    assert rise == pytest.approx(sum(each) / 3)
    assert rows[layer, head]["loss_rise_error"] == pytest.approx(torch.tensor(each).std().item() / 3**0.5, rel=1e-4)
    assert all(row["loss_rise_error"] is None for row in one.table())
    with pytest.raises(ValueError, match="text: got 1 token, the text at 1 of 2, want at least two"):
        regard.heads(model, None, [[3, 4], [5]])


def tokens(tokenizer, texts):
    return [torch.tensor(tokenizer(text).input_ids) for text in texts]


@pytest.mark.slow
def test_texts_are_spread_over_a_ray_cluster(tmp_path):
    """A local cluster gives what one process gives, from a store that one of them began."""
    pytest.importorskip("ray")
    code = """
import sys, torch
from regard.analysis.base import Prompt
from regard.analysis.corpus import over
from regard.analysis.sinks import SinkHeads
from regard.hosts import small
model, _ = small.load("tiny")
texts = [Prompt(torch.randint(2048, (64,), generator=torch.Generator().manual_seed(i))) for i in range(5)]
here = over([SinkHeads()], model, texts)["sink"]
over([SinkHeads()], model, texts[:2], sys.argv[1])
for store in (None, sys.argv[1]):
    told = []
    there = over([SinkHeads()], model, texts, store, lambda *step: told.append(step), "ray")["sink"]
    assert told == [(i, 5) for i in range(1, 6)], told
    for layer, values in here.values.items():
        torch.testing.assert_close(there.values[layer], values)
try:
    over([SinkHeads()], model, texts[:1] + [Prompt(torch.tensor([1]))], None, workers="ray")
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: got 1 of 2 that failed, such as with: ")
