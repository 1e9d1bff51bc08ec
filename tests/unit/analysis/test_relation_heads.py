"""Heads as parsers: the authors' word maps and divergences, trees by hand, planted heads and shuffled trees."""

import json
from pathlib import Path

import pytest
import torch
from torch import tensor
from transformers import BertConfig, BertModel

from regard.analysis.base import DenseMaps, Prompt
from regard.analysis.head_divergence import (
    DelimiterHeads,
    Divergences,
    HeadDivergence,
    NextTokenHeads,
    attention_gradients,
    divergences,
)
from regard.analysis.planted import planted_model
from regard.analysis.relation_heads import AttentionProbe, RelationHeads, Sentence, attention_probe, word_map
from regard.analysis.word_probe import AntecedentHeads, Mentions, word_probe
from regard.laws import examine, examples_of

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "words.json").read_text())
MAPS = tensor(VALUES["maps"], dtype=torch.float64)


def test_word_maps_are_those_of_the_authors_code():
    want = tensor(VALUES["word_maps"], dtype=torch.float64)
    found = word_map(MAPS, VALUES["words"])
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, 5, dtype=torch.float64))


def test_divergences_are_those_of_the_authors_code():
    torch.testing.assert_close(divergences(MAPS), tensor(VALUES["divergences"], dtype=torch.float64))


@pytest.mark.parametrize("kind", [RelationHeads, HeadDivergence])
def test_known_values(kind):
    (sample,) = examples_of(kind)
    assert examine(sample, "known", kind="analysis").verdict == "holds"


@pytest.mark.parametrize("law", ["planted", "null", "heads", "merge", "rows", "table"])
def test_heads_of_delimiters_obey_the_laws(law):
    (sample,) = examples_of(DelimiterHeads)
    finding = examine(sample, law, kind="analysis")
    assert finding.verdict == "holds", finding.detail


def test_next_tokens_are_seen_by_heads_that_look_ahead():
    maps = torch.eye(7).roll(1, 1)[None, None].expand(1, 2, 7, 7).clone()
    maps[0, 1] = 1 / 7
    found = NextTokenHeads().run(DenseMaps(lambda ids: [maps]), [Prompt(torch.arange(7))])
    torch.testing.assert_close(found.values[0], tensor([1, 1 / 7], dtype=torch.float64))


def trees(count: int, n: int = 6):
    """Sentences in which every word's head is drawn."""
    draw, found = torch.Generator().manual_seed(4), []
    for index in range(count):
        heads = [int(torch.randint(n - 1, (1,), generator=draw)) for _ in range(n)]
        heads = tuple(h + (h >= i) for i, h in enumerate(heads))
        relations = tuple("ab"[i % 2] for i in range(n))
        found.append(Sentence(torch.full((n,), index), tuple((i,) for i in range(n)), heads, relations))
    return found


def planted(sentences):
    """Two layers of three heads: (0, 1) looks at heads, (1, 2) at dependents, the others anywhere."""

    def maps(ids):
        index, n = int(ids[0, 0]), ids.shape[1]
        noise = torch.rand(2, 1, 3, n, n, generator=torch.Generator().manual_seed(index)).softmax(-1)
        gold = torch.zeros(n, n)
        gold[torch.arange(n), torch.tensor(sentences[index].heads)] = 1
        noise[0, 0, 1] += gold
        noise[1, 0, 2] += gold.T
        return list(noise)

    return DenseMaps(maps)


def test_planted_parsers_are_found_in_both_ways_and_not_for_shuffled_trees():
    sentences = trees(20)
    found = RelationHeads(("a", "b")).run(planted(sentences), sentences)
    assert found.best("a")[2] == 1
    assert found.accuracy("b", 0, (0, 1)) == 1
    assert found.accuracy("b", 1, (1, 2)) == 1
    assert found.accuracy("b", 0, (1, 2)) < 0.6
    shuffled = [
        Sentence(one.ids, one.words, other.heads, one.relations)
        for one, other in zip(sentences, sentences[1:] + sentences[:1], strict=True)
    ]
    assert RelationHeads(("a", "b")).run(planted(sentences), shuffled).best("a")[2] < 0.5
    assert [row["accuracy"] for row in found.table()] == [1, 1]


def test_parts_merge_to_the_whole():
    sentences = trees(5)
    analysis, subject = RelationHeads(("a", "b")), planted(sentences)
    one, other = (analysis.run(subject, part) for part in (sentences[:2], sentences[2:]))
    torch.testing.assert_close(one.merge(other).hits, analysis.run(subject, sentences).hits)
    with pytest.raises(ValueError, match="other"):
        one.merge(RelationHeads(("a",)).run(subject, sentences))


def test_the_probe_reads_planted_heads_in_their_ways():
    sentences = trees(40)
    maps = [torch.cat([of[0] for of in planted(sentences).maps(one.ids[None])]) for one in sentences]
    heads = [one.heads for one in sentences]
    probe = attention_probe(maps[:20], heads[:20])
    assert probe.right(maps[20:], heads[20:]) > 0.95
    assert int(probe.w.argmax()) == 1
    assert int(probe.u.argmax()) == 5
    shuffled = attention_probe(maps[:20], heads[1:20] + heads[:1])
    assert shuffled.right(maps[20:], heads[20:]) < 0.6


def test_scores_of_a_probe_by_hand():
    maps = tensor([[[0.5, 0.5], [0.2, 0.8]]])
    found = AttentionProbe(tensor([2.0]), tensor([3.0])).scores(maps)
    torch.testing.assert_close(found, tensor([[-torch.inf, 1.6], [1.9, -torch.inf]]))


def test_alike_heads_are_of_one_cluster():
    one, other = MAPS[:1].expand(3, -1, -1), MAPS[1:2].expand(2, -1, -1)
    values = divergences(torch.cat([one, other]))
    found = Divergences(tuple((0, h) for h in range(5)), values, 8)
    groups = list(found.clusters(2).values())
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1
    assert len(set(groups)) == 2
    plane = found.plane()
    gaps = (plane[:, None] - plane).norm(dim=2)
    torch.testing.assert_close(gaps, found.mean, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="count"):
        found.clusters(6)


def test_gradients_are_those_of_a_model_that_forms_its_maps():
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 7}
    model = BertModel(BertConfig(vocab_size=29, **sizes)).double().eval()
    ids = torch.arange(5)
    found = attention_gradients(model, ids, lambda out: out.last_hidden_state[0, 2].square().sum())
    eager = BertModel(BertConfig(vocab_size=29, **sizes, attn_implementation="eager")).double().eval()
    eager.load_state_dict(model.state_dict())
    out = eager(ids[None], output_attentions=True)
    want = torch.autograd.grad(out.last_hidden_state[0, 2].square().sum(), out.attentions)
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other[0])


def test_a_causal_models_divergences_merge():
    texts = [Prompt(torch.arange(7)), Prompt(torch.arange(3, 14))]
    analysis, model = HeadDivergence(), planted_model()
    whole = analysis.run(model, texts)
    merged = analysis.run(model, texts[:1]).merge(analysis.run(model, texts[1:]))
    torch.testing.assert_close(whole.values, merged.values)
    assert whole.rows == 18
    assert float(whole.mean.max()) < 0.7
    assert len(whole.table()) == 6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RelationHeads([]), "relations"),
        (lambda: RelationHeads(["c"]).run(planted(trees(1)), trees(1)), "none with c"),
        (lambda: HeadDivergence().run(planted_model(), []), "no prompts"),
        (lambda: DelimiterHeads([]), "ids"),
        (lambda: Sentence(torch.arange(2), ((0,), (1,)), (1,), ("a",)), "sentence"),
        (lambda: attention_probe([MAPS], []), "heads"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_possessor_speaks_by_the_mark_behind_it():
    maps = tensor(
        [[[0.1, 0.2, 0.7], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]], [[0.1, 0.7, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]]]
    )
    ids, words = torch.arange(3), ((0,), (1,), (2,))  # dog 's bone
    plain = Sentence(ids, words, (2, 0, -1), ("poss", "mark", ""))
    marked = Sentence(ids, words, (2, 0, -1), ("poss", "mark", ""), (1, 1, 2))
    analysis = RelationHeads(("poss",))
    assert analysis.scored(maps[None], plain).hits[0, 0, :, 0].tolist() == [1, 0]
    assert analysis.scored(maps[None], marked).hits[0, 0, :, 0].tolist() == [1, 1]
    with pytest.raises(ValueError, match="speakers"):
        Sentence(ids, words, (2, 0, -1), ("poss", "mark", ""), (1, 1))


def test_a_probe_of_words_chooses_heads_by_the_words():
    draw = torch.Generator().manual_seed(1)
    maps, vectors, trees = [], [], []
    for _ in range(24):  # head 0 is right for words of one kind, head 1 for those of the other
        kind = torch.randint(2, (7,), generator=draw)
        gold = (torch.arange(7) + 1 + torch.randint(6, (7,), generator=draw)) % 7
        other = (torch.arange(7) + 1 + torch.randint(6, (7,), generator=draw)) % 7
        one = torch.nn.functional.one_hot(torch.where(kind == 0, gold, other), 7).double()
        two = torch.nn.functional.one_hot(torch.where(kind == 1, gold, other), 7).double()
        maps.append(torch.stack([one, two]))
        vectors.append(torch.nn.functional.one_hot(kind, 2).double())
        trees.append(gold.tolist())
    probe = word_probe(maps[:16], vectors[:16], trees[:16])
    assert probe.right(maps[16:], vectors[16:], trees[16:]) == 1
    assert attention_probe(maps[:16], trees[:16]).right(maps[16:], trees[16:]) < 0.8
    i, j, v = 2, 5, vectors[0]
    both = torch.cat([maps[0], maps[0].mT])
    by_hand = sum(
        float(both[m, i, j] * (v[i] @ probe.own[:, m] + v[j] @ probe.other[:, m] + probe.bias[m])) for m in range(4)
    )
    assert float(probe.scores(maps[0], v)[i, j]) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="vectors"):
        word_probe(maps, vectors[:3], trees)


def test_antecedents_by_hand_and_of_drawn_sentences():
    (sample,) = examples_of(AntecedentHeads)
    for law in ("known",):
        assert examine(sample, law, kind="analysis").verdict == "holds"
    text = Mentions(torch.arange(4), ((0,), (1,), (2,), (3,)), ((3, 0, (0, 1)), (2, 1, (0, 1))))
    subject = DenseMaps(lambda ids: [torch.eye(4).roll(1, 1)[None, None]])
    found = AntecedentHeads().run(subject, [text])
    assert (found.nearest, found.first, found.total) == (1, 1, 2)
    assert found.merge(found).total == 4
    assert found.best() == ((0, 0), found.table()[0]["accuracy"])
    with pytest.raises(ValueError, match="mentions"):
        Mentions(torch.arange(4), text.words, ((1, 2, (2,)),))
    with pytest.raises(ValueError, match="no mentions"):
        AntecedentHeads().run(subject, [])
