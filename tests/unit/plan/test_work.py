"""The arithmetic of plans on numbers that a reader can check."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.networks import LM, Config
from regard.plan.device import Device
from regard.plan.kinetics import at_budget, calibrate, frontier, kinetics
from regard.plan.measure import shape_of
from regard.plan.mixers import GroupedAttention, LatentAttention, Recurrence, Work
from regard.plan.roofline import ModelShape, Network

SMALL = ModelShape(((2, GroupedAttention(7, 3, 1, 5)),), ((2, Network(7, 11)),), 13)


def test_parameters_of_a_small_model():
    """Two layers of 7 · (3 + 1 + 1) · 5 + 3 · 5 · 7 and 3 · 7 · 11, and 13 · 7 twice; once where they are tied."""
    assert SMALL.parameters == 2 * (175 + 105 + 231) + 2 * 91 == 1204
    assert replace(SMALL, tied=True).parameters == 1113
    assert SMALL.active == 1113  # the embedding is looked up, not multiplied


def test_a_step_of_a_small_model():
    """Three sequences of 17 tokens: 2 FLOPs a parameter and sequence; scores and values 4 · 3 · 5 · 17 a sequence."""
    step = SMALL.step(3, 17)
    assert step.flops == 2 * 3 * 1113 + 2 * 3 * 4 * 3 * 5 * 17
    assert step.weights == 2 * 1113
    assert step.cache == 2 * 3 * 17 * 10 * 2  # layers, sequences, tokens, keys and values of one head, bytes


@pytest.mark.parametrize(("flops", "moved", "seconds"), [(600, 10, 20.0), (6, 300, 50.0)])
def test_the_slower_ceiling_holds_and_devices_share(flops, moved, seconds):
    """30 FLOP/s and 6 byte/s: 600 FLOPs take 20 s, 300 bytes 50 s; five devices take a fifth, a ridge is one's own."""
    one = Device(flops=30, bandwidth=6, memory=1)
    work = Work(flops, weights=moved / 2, cache=moved / 2)
    assert work.seconds(one) == seconds
    assert work.seconds(replace(one, count=5)) == seconds / 5
    assert one.ridge == replace(one, count=5).ridge == 5


def test_largest_batch_by_hand():
    """1,204 parameters and 40 bytes of cache a token in 2 layers: 3 devices of 2,000 bytes leave 3,592 for 7 tokens."""
    device = Device(1, 1, memory=2000)
    assert SMALL.token_bytes == 2 * 10 * 2
    assert SMALL.largest_batch(replace(device, count=3), 7) == 3592 // 280 == 12
    assert SMALL.largest_batch(replace(device, count=2), 7) == 5
    assert SMALL.largest_batch(device, 7) == 0


def test_experts_that_are_touched_by_counting():
    """3 tokens with 2 of 4 experts each: the mean over all 6³ choices."""
    pairs = list(itertools.combinations(range(4), 2))
    counted = [len(set().union(*chosen)) for chosen in itertools.product(pairs, repeat=3)]
    assert Network(5, 3, 4, 2).touched(3) == pytest.approx(sum(counted) / len(counted))
    assert Network(5, 3, 4, 2).touched(1) == 2
    assert Network(5, 3).touched(11) == 1


def test_a_step_of_experts():
    """2 of 4 experts of 3 · 5 · 3 = 45, a shared network of 3 · 5 · 7 = 105, a router of 5 · 4: for 3 tokens."""
    experts = Network(5, 3, experts=4, active=2, shared=7)
    assert experts.parameters == 4 * 45 + 105 + 20
    step = experts.step(3, 2)
    assert step.flops == 2 * 3 * (2 * 45 + 105 + 20)
    assert step.weights == pytest.approx(2 * (3.5 * 45 + 105 + 20))
    assert experts.expert_step(8, 2) == Work(2 * 45 * 4, 90)  # half of the 8 tokens each
    assert Network(5, 3, matrices=2).parameters == 30


def test_batch_at_which_experts_are_bound_by_compute():
    """At 2 bytes a number one token is 1 FLOP a byte of a network, half of it with 2 of 4 experts: ridge 13 asks 26."""
    device = Device(flops=13, bandwidth=1, memory=1)
    assert SMALL.balanced_batch(device) == 13
    assert replace(SMALL, networks=((1, Network(7, 11)), (1, Network(7, 3, 4, 2)))).balanced_batch(device) == 26
    assert replace(SMALL, itemsize=1).balanced_batch(device) == 7
    assert replace(SMALL, networks=()).balanced_batch(device) == 13
    assert SMALL.balanced_batch(Device(flops=2e6, bandwidth=1, memory=1)) is None


def test_windows_chunks_and_states():
    sliding, chunks = (GroupedAttention(7, 3, 1, 5, window=11, chunked=kind) for kind in (False, True))
    assert [sliding.seen(n) for n in (1, 11, 12, 22, 23)] == [1, 11, 11, 11, 11]
    assert [chunks.seen(n) for n in (1, 11, 12, 22, 23)] == [1, 11, 1, 11, 1]
    assert [sliding.kept(n) for n in (4, 11, 50)] == [40, 110, 110]
    assert sliding.core(3, 50, 2) == GroupedAttention(7, 3, 1, 5).core(3, 11, 2)
    state = Recurrence.lightning(7, 3, 5)
    assert (state.state, state.parameters) == (75, 5 * 7 * 15)
    assert state.core(2, 1000, 2) == Work(2 * 4 * 75, cache=2 * 2 * 75 * 2)  # read and written
    with pytest.raises(ValueError, match="window: got 0, want at least one token"):
        GroupedAttention(7, 3, 1, 5, window=0)
    with pytest.raises(ValueError, match="chunked: got True without a window"):
        GroupedAttention(7, 3, 1, 5, chunked=True)


MIXERS = st.sampled_from(
    [
        GroupedAttention(7, 3, 1, 5),
        GroupedAttention(7, 3, 1, 5, window=11),
        GroupedAttention(7, 3, 1, 5, window=11, chunked=True),
        GroupedAttention(7, 3, 1, 5, window=29),
        LatentAttention(7, 3, 0, 5, 2, 1, 3),
        Recurrence.lightning(7, 3, 5),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    mixers=st.lists(MIXERS, min_size=1, max_size=3, unique=True),
    prompt=st.integers(1, 50),
    answer=st.integers(1, 70),
    budget=st.none() | st.integers(1, 60),
    batch=st.integers(1, 5),
)
def test_answers_are_the_sum_of_their_steps(mixers, prompt, answer, budget, batch):
    """`answered` equals the steps one by one, across windows, chunks and the budget."""
    shape = replace(SMALL, mixers=tuple((i + 1, mixer) for i, mixer in enumerate(mixers)), budget=budget)
    got, want = shape.answered(batch, prompt, answer), Work()
    for context in range(prompt + 1, prompt + answer + 1):
        want += shape.attended(batch, context)
    for name in ("flops", "weights", "cache"):
        assert getattr(got, name) == pytest.approx(getattr(want, name))


def test_a_budget_reads_no_more():
    """With 16 of 48 tokens: 16 are attended to, and 48 / 4 blocks are scored at half the cost of attention."""
    sparse = SMALL.sparse(16, block=4)
    core = SMALL.attended(1, 1)
    assert sparse.attended(1, 48) == core * 16 + core * (48 / 4 / 2)
    assert sparse.attended(1, 16) == SMALL.attended(1, 16)


def test_equivalent_flops_by_hand():
    """4 samples of 5 tokens after 9, weights read once for 8 sequences; ridge 3: contexts 10 … 14, 12 on average."""
    device = Device(flops=6, bandwidth=2, memory=1)
    split = kinetics(SMALL, device, prompt=9, answer=5, samples=4, batch=8)
    assert split.weights == 4 * 5 * 2 * 1113
    assert split.weights_read == pytest.approx(3 * 2 * 1113 * 5 * 4 / 8)
    assert split.attention == 2 * 4 * 4 * 3 * 5 * (10 + 11 + 12 + 13 + 14)
    assert split.cache_read == 3 * 4 * (10 + 11 + 12 + 13 + 14) * 40
    assert split.total == split.weights + split.weights_read + split.attention + split.cache_read
    assert split.attention_share == (split.attention + split.cache_read) / split.total


def test_frontier_keeps_what_no_cheaper_plan_equals():
    """k samples solve with 1 − (1 − rate)^k."""
    plans = frontier(
        {"small": SMALL}, Device(6, 2, 1), 9, [1, 4], [1, 2], lambda name, answer: 0.5 if answer == 4 else 0
    )
    assert [(plan.answer, plan.samples, plan.rate) for plan in plans] == [(1, 1, 0), (4, 1, 0.5), (4, 2, 0.75)]
    assert at_budget(plans, plans[1].cost) == 0.5
    assert at_budget(plans, plans[0].cost / 2) == 0


def test_calibration_finds_the_constants():
    """Times made of 3, 5 and 0.25 seconds are taken apart again; a constant is never below zero."""
    works = [Work(f, w, c) for f, w, c in ((7.0, 2.0, 3.0), (1.0, 11.0, 2.0), (5.0, 3.0, 13.0), (17.0, 1.0, 1.0))]
    fitted = calibrate((w, 3 * w.weights + 5 * w.cache + 0.25 * w.flops) for w in works)
    assert (fitted.weights, fitted.cache, fitted.flops) == pytest.approx((3, 5, 0.25))
    assert fitted.error < 1e-9
    odd = calibrate([(works[0], 1.0), (works[1], 2.0), (works[2], 4.0)])
    assert min(odd.weights, odd.cache, odd.flops) >= 0
    assert odd.error == max(abs(odd.seconds(w) / s - 1) for w, s in zip(works, (1, 2, 4), strict=False))


def test_shape_of_a_model_of_ours():
    """Its matrices are the model's own: head_dim and kv heads apart from width and heads."""
    model = LM(Config(vocabulary=53, width=24, layers="softmax*3", heads=4, kv_heads=2, head_dim=10, inner=31), seed=0)
    assert shape_of(model).parameters == sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert shape_of(model).itemsize == 4


def test_a_recurrence_multiplies_its_state_as_often_as_it_reads_and_writes_it():
    """Two FLOPs a number to write and two to read it, and two more where what it holds is read before; by hand."""
    assert Recurrence.mamba(width=5, inner=7, state=3, rank=2, kernel=4).flops == 4 * 21
    assert Recurrence.mamba2(width=5, heads=2, head_dim=3, groups=1, state=7, kernel=4).flops == 4 * 42
    assert Recurrence.delta(width=5, key_heads=1, heads=2, key_dim=3, value_dim=7, kernel=4).flops == 6 * 42
    assert Recurrence.lightning(width=5, heads=2, head_dim=3).flops == 4 * 18
    assert Recurrence.convolution(width=5, kernel=4).flops == 0
    work = Recurrence.mamba(width=5, inner=7, state=3, rank=2, kernel=4).core(11, 1000, 2)
    assert (work.flops, work.cache) == (11 * 84, 2 * 11 * (21 + 28) * 2)
