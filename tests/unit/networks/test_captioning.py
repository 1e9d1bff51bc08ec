"""Captioners against their equations written out one word after the other, and what scores captions against hands."""

import math

import pytest
import torch

from regard.claims.testbeds.captioned import LENGTH, PADDING, WORDS, bleu, draw, named, sentences
from regard.networks.captioning.adaptive import AdaptiveCaptioner
from regard.networks.captioning.bottom_up import BottomUpAnswers, BottomUpTopDown
from regard.networks.captioning.show_attend_tell import ShowAttendTell
from regard.studies.captioning_bottleneck import Bottleneck

SOFTLY, DRAWS = 0, 1
"""Seeds of generators whose first number is below one half, and above."""


def lstm(cell, x, hidden, memory):
    """An LSTM's step by its equations."""
    gates = x @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
    enter, forget, new, out = gates.chunk(4, -1)
    memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(memory), memory


def images(count=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 13, 11, generator=generator, dtype=torch.float64), torch.tensor([[4, 9, 1]] * count)


def previous(network, words):
    first = torch.full_like(words[:, :1], network.target)
    return torch.cat([first, words[:, :-1]], 1)


def additive(reader, query, keys):
    return torch.tanh(query[:, None] + keys) @ getattr(reader, "scorer", reader).out[0]


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_show_attend_tell_is_its_equations(attention):
    network = ShowAttendTell(11, 7, attention=attention, seed=0).double()
    source, words = images()
    a = network.grid(source)
    hidden, memory = torch.tanh(a.mean(1) @ network.begin.weight.T + network.begin.bias).chunk(2, -1)
    wanted, looked = [], []
    for word in previous(network, words).unbind(1):
        alpha = additive(network.reader, network.query(hidden), network.key(a)).softmax(-1)
        if attention == "hard":
            alpha = (alpha == alpha.max(-1, keepdim=True).values).double()
        z = torch.sigmoid(network.gate(hidden)) * torch.einsum("bm,bmc->bc", alpha, a)
        y = network.embedding.weight[word]
        hidden, memory = lstm(network.cell, torch.cat([y, z], -1), hidden, memory)
        wanted.append(network.out(torch.tanh(y + network.say_hidden(hidden) + network.say_seen(z))))
        looked.append(alpha)
    torch.testing.assert_close(network(source, words), torch.stack(wanted, 1))
    torch.testing.assert_close(network.alignment(source, words), torch.stack(looked, 1))


def test_the_sentinel_takes_a_share_of_one_softmax():
    network = AdaptiveCaptioner(11, 7, seed=0).double()
    source, words = images()
    a = network.grid(source)
    whole, v = network.whole(a.mean(1)).relu(), network.part(a).relu()
    hidden = memory = torch.zeros(2, 7, dtype=torch.float64)
    wanted, looked = [], []
    for word in previous(network, words).unbind(1):
        x = torch.cat([network.embedding.weight[word], whole], -1)
        before = hidden
        hidden, memory = lstm(network.cell, x, hidden, memory)
        s = network.own(torch.sigmoid(network.gate(torch.cat([x, before], -1))) * torch.tanh(memory)).relu()
        asked = torch.tanh(network.ask(hidden))
        keys = torch.cat([network.key(v), network.own_key(s)[:, None]], 1)
        shares = additive(network.reader.scorer, network.query(asked), keys).softmax(-1)
        c = torch.einsum("bm,bmc->bc", shares, torch.cat([v, s[:, None]], 1))
        wanted.append(network.out(torch.tanh(network.say(c + asked))))
        looked.append(shares[:, :-1])
    torch.testing.assert_close(network(source, words), torch.stack(wanted, 1))
    torch.testing.assert_close(network.alignment(source, words), torch.stack(looked, 1))


def test_bottom_up_top_down_is_its_equations_and_padding_regions_are_nothing():
    network = BottomUpTopDown(11, 5, 7, seed=0).double()
    generator = torch.Generator().manual_seed(3)
    source, words = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64), images()[1]
    v = network.see(source[:, :4])
    hidden = memory = language = kept = torch.zeros(2, 7, dtype=torch.float64)
    wanted, looked = [], []
    for word in previous(network, words).unbind(1):
        x = torch.cat([language, v.mean(1), network.embedding.weight[word]], -1)
        hidden, memory = lstm(network.cell, x, hidden, memory)
        alpha = additive(network.reader, network.query(hidden), network.key(v)).softmax(-1)
        seen = torch.einsum("bm,bmc->bc", alpha, v)
        language, kept = lstm(network.language, torch.cat([seen, hidden], -1), language, kept)
        wanted.append(network.out(language))
        looked.append(alpha)
    lengths = torch.tensor([4, 4])
    torch.testing.assert_close(network(source, words, lengths), torch.stack(wanted, 1))
    shown = network.alignment(source, words, lengths)
    torch.testing.assert_close(shown[..., :4], torch.stack(looked, 1))
    assert shown[..., 4:].count_nonzero() == 0


def test_a_question_weighs_regions_once():
    network = BottomUpAnswers(11, 13, 5, 7, seed=0).double()
    generator = torch.Generator().manual_seed(3)
    v, words = torch.randn(1, 4, 5, generator=generator, dtype=torch.float64), torch.tensor([[2, 3, 5]])
    q = network.question(network.embedding(words))[0][:, -1]

    def gated(layer, x):
        return torch.tanh(layer.value(x)) * torch.sigmoid(layer.gate(x))

    scores = torch.stack([network.score(gated(network.match, torch.cat([v[0, i], q[0]])))[0] for i in range(4)])
    seen = scores.softmax(0) @ v[0]
    wanted = network.out(gated(network.joined, gated(network.asked, q[0]) * gated(network.seen, seen)))
    torch.testing.assert_close(network(v, words)[0], wanted)
    longer = torch.cat([v, 9 * torch.ones_like(v)], 1)
    torch.testing.assert_close(network(longer, words, torch.tensor([4]))[0], wanted)


def test_the_penalty_for_uneven_looks_is_by_hand():
    """Two cells, two words that look (1, 0) and (½, ½), and one of padding: (1 − 1.5)² + (1 − .5)² = ½."""
    network = ShowAttendTell(11, 7, attention="soft", even=3.0, seed=0)
    looks = iter(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[1.0, 0.0]]]))
    network.chances = lambda hidden, encoded: next(looks)
    network.grid = torch.nn.Module()
    network.grid.forward = lambda source: torch.ones(1, 2, 7)
    words, real = torch.tensor([[4, 9, 1]]), torch.tensor([[True, True, False]])
    whole = network.loss(torch.zeros(1, 3, 4, 4), words, real, torch.Generator())
    network.even, looks = 0.0, iter(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[1.0, 0.0]]]))
    network.chances = lambda hidden, encoded: next(looks)
    plain = network.loss(torch.zeros(1, 3, 4, 4), words, real, torch.Generator())
    assert (whole - plain).item() == pytest.approx(3 * 0.5, abs=1e-6)


def test_hard_attention_learns_where_to_look_and_moves_its_baseline():
    network = ShowAttendTell(11, 7, attention="hard", seed=0).train()
    source, words = images(8)
    loss = network.loss(
        source.float(), words, torch.ones_like(words, dtype=torch.bool), torch.Generator().manual_seed(DRAWS)
    )
    loss.backward()
    assert network.query.weight.grad.abs().max() > 0
    assert network.baseline < 0
    chances = torch.tensor([[0.25, 0.75]] * 999)
    drawn, log = network.draw(chances, torch.Generator().manual_seed(0))
    assert set(drawn.sum(1).tolist()) == {1.0}
    assert drawn[:, 1].mean().item() == pytest.approx(0.75, abs=0.05)
    assert log[drawn[:, 0] == 1][0].item() == pytest.approx(math.log(0.25))


@pytest.mark.parametrize(("seed", "softly"), [(SOFTLY, True), (DRAWS, False)])
def test_a_batch_of_hard_attention_looks_softly_at_all_of_its_words_or_draws_for_each(seed, softly):
    network, seen = ShowAttendTell(11, 7, attention="hard", seed=0).train(), []
    told = network.told
    network.told = lambda state, before, encoded, weights: seen.append(weights) or told(state, before, encoded, weights)
    source, words = images(64)
    words = words.repeat(1, 4)
    network.loss(source.float(), words, torch.ones_like(words, dtype=torch.bool), torch.Generator().manual_seed(seed))
    assert len(seen) == 12
    assert [bool((weights == 1).any(1).all()) for weights in seen] == [not softly] * 12


def test_the_loss_of_hard_attention_rewards_draws_by_how_likely_the_caption_is_beside_the_baseline():
    network, chances, logits, cells = ShowAttendTell(11, 7, attention="hard", seed=0).double().train(), [], [], []
    asked, told = network.chances, network.told

    def noted(state, before, encoded, weights):
        state, said = told(state, before, encoded, weights)
        cells.append(weights)
        logits.append(said)
        return state, said

    network.chances = lambda hidden, encoded: chances.append(asked(hidden, encoded)) or chances[-1]
    network.told, network.baseline = noted, torch.tensor(-5.0, dtype=torch.float64)
    source, words = images(8)
    real = torch.tensor([[True, True, True]] * 4 + [[True, True, False]] * 4)
    loss = network.loss(source, words, real, torch.Generator().manual_seed(DRAWS))
    likely, drawn, entropy = torch.zeros(8).double(), torch.zeros(8).double(), torch.zeros(8).double()
    for place in range(3):
        there = real[:, place].double()
        likely += there * logits[place].log_softmax(1).gather(1, words[:, place, None])[:, 0]
        drawn += there * (chances[place] * cells[place]).sum(1).log()
        entropy -= there * (chances[place] * chances[place].log()).sum(1)
    want = -likely.mean() - 0.1 * ((likely.detach() + 5) * drawn).mean() - 0.002 * entropy.mean()
    assert loss.item() == pytest.approx(want.item(), abs=1e-12)
    assert network.baseline.item() == pytest.approx(0.9 * -5 + 0.1 * likely.mean().item(), abs=1e-6)
    ours, theirs = (torch.autograd.grad(of, network.query.weight, retain_graph=True)[0] for of in (loss, want))
    torch.testing.assert_close(ours, theirs)


def test_a_captioner_asked_once_keeps_its_first_look():
    network = Bottleneck(11, 7, "once", seed=0).double()
    source, words = images()
    shown = network.alignment(source, words)
    assert torch.equal(shown[:, 1], shown[:, 0])
    assert not torch.equal(*Bottleneck(11, 7, "always", seed=0).double().alignment(source, words)[0, :2])


@pytest.mark.parametrize("reads", ["start", "every", "merged", "once", "always"])
def test_each_way_to_read_an_image_is_its_equations(reads):
    network = Bottleneck(11, 7, reads, seed=0).double()
    source, words = images()
    a = network.grid(source)
    even = torch.full_like(a[..., 0], 1 / a.shape[1])
    hidden = memory = torch.zeros_like(a[:, 0])
    if reads == "start":
        hidden, memory = torch.tanh(a.mean(1) @ network.begin.weight.T + network.begin.bias).split(7, -1)
    alpha, wanted, looked = even, [], []
    for place, word in enumerate(previous(network, words).unbind(1)):
        if reads == "always" or (reads == "once" and place == 0):
            alpha = additive(network.reader, network.query(hidden), network.key(a)).softmax(-1)
        z, y = torch.einsum("bm,bmc->bc", alpha, a), network.embedding.weight[word]
        given = y if reads in ("start", "merged") else torch.cat([y, z], -1)
        hidden, memory = lstm(network.cell, given, hidden, memory)
        wanted.append(network.out(torch.cat([hidden, z.relu()], -1) if reads == "merged" else hidden))
        looked.append(alpha)
    torch.testing.assert_close(network(source, words), torch.stack(wanted, 1))
    torch.testing.assert_close(network.alignment(source, words), torch.stack(looked, 1))


@pytest.mark.parametrize("network", [ShowAttendTell, AdaptiveCaptioner, Bottleneck])
def test_images_that_do_not_fit_are_named(network):
    made = network(11, 7, seed=0)
    with pytest.raises(ValueError, match=r"^source: got shape \(1, 2, 8, 8\), want images \(b, 3, y, x\)"):
        made(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^lengths: got \[3\], want None"):
        made(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, dtype=torch.int64), torch.tensor([3]))


def test_scores_of_captions_by_hand():
    """Seven of eight words, five of seven pairs, three of six triples, two of five quadruples."""
    told, wanted = [[8, 0, 4, 9, 8, 1, 7, 10]], [[8, 0, 4, 9, 8, 2, 7, 10]]
    assert bleu(told, wanted) == pytest.approx((7 / 8 * 5 / 7 * 3 / 6 * 2 / 5) ** 0.25)
    assert bleu(wanted, wanted) == 1
    assert bleu([wanted[0][:6]], wanted) == pytest.approx(math.exp(1 - 8 / 6))
    assert named(told, wanted) == 0.5
    assert named([[8]], [[8]]) == 0


def test_scenes_say_what_they_show():
    scenes = draw(40, torch.Generator().manual_seed(0))
    assert scenes.words.shape == (40, LENGTH)
    assert int(scenes.words.max()) < WORDS
    assert torch.equal(scenes.real.sum(1), 4 * scenes.counts)
    assert [len(row) for row in sentences(scenes.words)] == (4 * scenes.counts).tolist()
    assert (scenes.words[~scenes.real] == PADDING).all()
    for row in range(40):
        for number in range(int(scenes.counts[row])):
            top, left = scenes.corners[row, number].tolist()
            about = (scenes.shown[row] == number).nonzero()[:, 0]
            colour, shape = scenes.words[row, about].tolist()
            assert 0 <= colour < 4 <= shape < 8
            mean = scenes.images[row, :, top : top + 8, left : left + 8].mean((1, 2))
            strong = {0: [0], 1: [1], 2: [2], 3: [0, 1]}[colour]
            assert mean[strong].min() > 2 * mean[[c for c in range(3) if c not in strong]].max()
    boxes = scenes.inside(8)
    torch.testing.assert_close(boxes.sum(-1), torch.full((40, 3), 4.0))
    assert scenes.regions()[scenes.counts == 1][:, 1:].count_nonzero() == 0
