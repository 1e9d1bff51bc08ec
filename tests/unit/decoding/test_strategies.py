"""Decoding strategies by hand: what is mixed, which heads, which rates, which branch; and what is refused."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, DynamicCache

import regard
from regard.decoding import HICD, AttentionBuckets, Contrast, MonitoringDecoding
from regard.decoding.attention_buckets import complementary, extrema, rebased, waveform
from regard.decoding.hicd import contrasted
from regard.decoding.monitoring import small
from regard.edits import KnockOut
from regard.laws.edit import Maps, model
from regard.laws.small import llama, tokens
from unit.hosts.models import causal, t5

KNOCKED = [KnockOut([(2, 5)])]


def logs(*probabilities):
    return torch.tensor(probabilities).log()[None]


def generated(strategy, ids, **options):
    usual = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    usual |= {"attention_mask": torch.ones_like(ids), "custom_generate": strategy}
    return model().generate(ids, **(usual | options))


def test_a_contrast_by_hand():
    """s = log p + 2 (log p − log p̃): 0.5³/0.6², 0.3³/0.1², 0.2³/0.3²; of less than 0.5 · 0.5 nothing is said."""
    both = logs((0.5, 0.3, 0.2), (0.6, 0.1, 0.3))
    want = torch.tensor([[0.5**3 / 0.6**2, 0.3**3 / 0.1**2, 0.2**3 / 0.3**2]]).log()
    torch.testing.assert_close(Contrast(KNOCKED, 2.0).mixed(both), want)
    once = torch.tensor([[0.5**2 / 0.6, 0.3**2 / 0.1, 0.2**2 / 0.3]]).log()
    torch.testing.assert_close(Contrast(KNOCKED).mixed(both), once)
    cut = Contrast(KNOCKED, 2.0, plausibility=0.5).mixed(both)
    torch.testing.assert_close(cut[:, :2], want[:, :2])
    assert cut[0, 2] == -math.inf


def test_buckets_are_weighed_by_their_largest_probability():
    """Largest 0.6 and 0.9: weights 0.4 and 0.6."""
    both = logs((0.6, 0.4), (0.1, 0.9))
    want = torch.tensor([[0.4 * 0.6 + 0.6 * 0.1, 0.4 * 0.4 + 0.6 * 0.9]]).log()
    torch.testing.assert_close(AttentionBuckets((1.0, 2.0)).mixed(both), want)


def test_rates_are_those_of_the_base_times_the_factor():
    rotary, x = model().model.rotary_emb, torch.zeros(4, 3, 24)
    places, d = torch.tensor([[0, 5, 11]]), 4
    plain = rotary(x, places)
    with rebased(model(), (1.0, 30.0)):
        cos, sin = rotary(x, places)
    base = 30.0 * model().config.rope_parameters["rope_theta"]
    angles = places[0, :, None] * torch.tensor([base ** (-2 * i / d) for i in range(d // 2)])
    for row, wanted in enumerate([plain, (angles.cos().repeat(1, 2)[None], angles.sin().repeat(1, 2)[None])] * 2):
        torch.testing.assert_close(cos[row : row + 1], wanted[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sin[row : row + 1], wanted[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rotary(x, places), plain, atol=0, rtol=0)


def test_dispersed_heads_attend_evenly_in_the_copy_alone():
    ids, strategy, maps = tokens(2, 7), HICD({0: [1, 4]}), Maps()
    with strategy.running(model(), 2, range(2)), regard.watch(model(), probes=[maps]):
        model()(input_ids=ids.repeat_interleave(2, 0), use_cache=False)
    even = torch.ones(7, 7).tril() / torch.arange(1, 8)[:, None]
    plain = Maps()
    with regard.watch(model(), probes=[plain]):
        model()(input_ids=ids, use_cache=False)
    for head in range(6):
        want = even.expand(2, -1, -1) if head in (1, 4) else plain.result()[0][:, head]
        torch.testing.assert_close(maps.result()[0][1::2, head], want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.result()[1][0::2], plain.result()[1], atol=1e-5, rtol=1e-4)


def test_heads_are_chosen_that_matter_for_right_answers_and_not_for_others():
    """c + 20 (c − a): 11, −9.9, 4.2, 0.5."""
    right, misleading = torch.tensor([[1.0, 0.1], [0.2, 0.5]]), torch.tensor([[0.5, 0.6], [0.0, 0.5]])
    assert contrasted(right, misleading, 2, 20.0) == {0: [0], 1: [0]}
    assert contrasted(right, misleading, 3, 20.0) == {0: [0], 1: [0, 1]}
    with pytest.raises(ValueError, match="top: got 5, want 1 to 4"):
        contrasted(right, misleading, 5, 20.0)


@torch.no_grad()
def test_a_doubtful_token_becomes_the_likeliest_ones_and_the_reference_judges():
    """Pieces of one token, all doubtful: of the model's 3 likeliest the one that the reference finds likeliest."""
    ids, reference = tokens(2, 9), small(5)
    out = generated(MonitoringDecoding(reference, 1e9, length=1, candidates=3, width=3), ids, max_new_tokens=4)
    for step in range(4):
        text = out[:, : 9 + step]
        likeliest = model()(input_ids=text, use_cache=False).logits[:, -1].topk(3).indices
        judged = reference(input_ids=text, use_cache=False).logits[:, -1].gather(1, likeliest)
        assert (likeliest.gather(1, judged.argmax(1, keepdim=True))[:, 0] == out[:, 9 + step]).all()
    same = generated(MonitoringDecoding(model(), 0.999), ids)
    assert torch.equal(same, generated(None, ids)), "a model does not doubt itself"


def test_a_piece_keeps_the_branch_of_the_best_mean():
    """Two tokens, two candidates each, room for all four branches: the best of them by enumeration."""
    ids, reference = tokens(1, 9), small(5)
    out = generated(MonitoringDecoding(reference, 1e9, length=2, candidates=2, width=4), ids, max_new_tokens=2)
    found = {}
    with torch.no_grad():
        for first in model()(input_ids=ids, use_cache=False).logits[0, -1].topk(2).indices.tolist():
            one = torch.cat([ids, torch.tensor([[first]])], 1)
            for second in model()(input_ids=one, use_cache=False).logits[0, -1].topk(2).indices.tolist():
                both = torch.cat([one, torch.tensor([[second]])], 1)
                judged = reference(input_ids=both, use_cache=False).logits[0, 8:10].log_softmax(-1)
                found[first, second] = float(judged[0, first] + judged[1, second])
    assert tuple(out[0, 9:].tolist()) == max(found, key=found.get)


def test_everything_that_is_returned_is_of_sequences_and_not_of_copies():
    ids, strategy = tokens(3, 8), Contrast(KNOCKED, 1.5)
    more = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = generated(strategy, ids, do_sample=True, top_k=7, **more)
    assert out.sequences.shape == (3, 13)
    assert [len(out.scores), len(out.logits)] == [5, 5]
    assert {tuple(step.shape) for step in (*out.scores, *out.logits)} == {(3, 29)}
    for step, scores in enumerate(out.scores):
        assert (scores.isfinite().sum(1) == 7).all(), "warpers have met the mixture"
        assert scores.gather(1, out.sequences[:, 8 + step, None]).isfinite().all()


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (Contrast(KNOCKED), {"num_beams": 2}, "generate: got beam search, want greedy or sampled decoding"),
        (MonitoringDecoding(small(1)), {"do_sample": True}, "do_sample: got True, want False: MonitoringDecoding"),
    ],
)
def test_what_cannot_be_followed_is_refused(strategy, options, said):
    with pytest.raises(ValueError, match=said):
        generated(strategy, tokens(1, 8), **options)


def test_arguments_and_models_are_refused_by_name():
    with pytest.raises(ValueError, match="edits: got none"):
        Contrast([])
    with pytest.raises(ValueError, match=r"plausibility: got 1\.5"):
        Contrast(KNOCKED, 1.0, 1.5)
    with pytest.raises(ValueError, match=r"the first 1\.0: the model's own base"):
        AttentionBuckets((2.0,))
    with pytest.raises(ValueError, match="threshold: got -1"):
        MonitoringDecoding(small(1), -1)
    with pytest.raises(TypeError, match=r"value: got 0\.5, want a strategy with a dial: AttentionBuckets has none"):
        AttentionBuckets((1.0,)).at(0.5)
    cache = DynamicCache()
    model()(input_ids=tokens(1, 4), past_key_values=cache)
    with pytest.raises(ValueError, match="a cache of 4 tokens, want an empty one"):
        generated(Contrast(KNOCKED), tokens(1, 8), past_key_values=cache)
    seq2seq = t5()
    with pytest.raises(TypeError, match="want a decoder alone"):
        seq2seq.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, custom_generate=Contrast(KNOCKED))
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 7}
    bert = BertLMHeadModel(BertConfig(vocab_size=29, is_decoder=True, **sizes)).eval()
    with pytest.raises(ValueError, match="model: got BertLMHeadModel, want one with rotary positions"):
        bert.generate(tokens(1, 5), max_new_tokens=2, custom_generate=AttentionBuckets((1.0, 2.0)))


def test_the_wave_is_its_definition_and_its_extrema_are_seen():
    rates, length = torch.tensor([1.0, 0.1, 0.01]), 50
    wave = waveform(rates, length)
    for delta in (0, 3, 49):
        sums = [abs(sum(cmath.exp(1j * delta * float(rate)) for rate in rates[: j + 1])) for j in range(3)]
        assert wave[delta].item() == pytest.approx(sum(sums) / 3, abs=1e-6)
    assert wave[0] == wave.max() == 2
    hills = torch.tensor([9.0, 1, 2, 5, 2, 1, 0, 3, 8, 3, 2, 9])
    peaks, troughs = extrema(hills, 2)
    assert (peaks.tolist(), troughs.tolist()) == ([3, 8], [6])


def test_the_next_base_is_the_one_whose_peaks_are_nearest_to_the_troughs():
    """Each addition makes the gap, counted by hand, the least that any other factor would."""
    rates, factors = 1e4 ** -(torch.arange(8) / 8), [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    chosen = complementary(rates, 200, 3, factors)
    assert chosen[0] == 1.0

    def by_hand(some):
        waves = [extrema(waveform(rates * torch.tensor(f) ** -(torch.arange(8) / 8), 200), 3) for f in some]
        far = [
            min(abs(int(t) - int(p)) for other, (peaks, _) in enumerate(waves) if other != index for p in peaks)
            for index, (_, troughs) in enumerate(waves)
            for t in troughs
        ]
        return sum(far) / len(far)

    for size in (2, 3):
        left = [f for f in factors if f not in chosen[: size - 1]]
        assert by_hand(chosen[:size]) == pytest.approx(min(by_hand([*chosen[: size - 1], f]) for f in left), abs=0.2)


def test_bases_are_searched_for_a_model():
    found = AttentionBuckets.searched(llama(1), 64, count=3, most=3.0)
    assert len(found.factors) == 3
    assert found.factors[0] == 1.0
    assert all(1 < factor <= 3 for factor in found.factors[1:])
    with pytest.raises(ValueError, match="model: got GPT2LMHeadModel, want one with rotary positions"):
        AttentionBuckets.searched(causal("GPT2"), 64)
    with pytest.raises(ValueError, match="count: got 70, want 1 to 61"):
        AttentionBuckets.searched(llama(1), 64, count=70)
