"""Studies of dynamics, blocks, thoughts and triples, and measures of gaze, against hand-worked values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.analysis.gaze import (
    area_under_curve,
    correlation,
    divergence,
    edit_similarity,
    normalised_scanpath_saliency,
    scan_match,
)
from regard.claims import abrupt, joint, locality
from regard.claims.figures import Figures
from regard.studies.abrupt_learning import Bursts, InductionNet, NestedLogits
from regard.studies.attention_survey import TAXONOMY, having, tags
from regard.studies.conscious_prior import Factors, Thoughts, information
from regard.studies.human_attention import GazePool, ScanpathReader
from regard.studies.in_context_regression import (
    RegressionHeads,
    SeveralRegressions,
    several_prompts,
    step_of_descent,
)
from regard.studies.joint_dynamics import JointDynamics, LatentTree, flow
from regard.studies.localist import Localist, entropy_bound, recruit
from regard.studies.memorisation import Memory, is_general, kruskal_rank
from regard.studies.perception_cognition import KINDS, Looks, SceneReader, until_verified
from regard.studies.random_features import bounded_fit
from regard.studies.scan_and_snap import SharedSnap, Snap, crossed, world
from regard.studies.softmax_limits import distance_to_rest, weight_range
from regard.studies.sparse_averaging import balanced, matches, told_pairs
from regard.studies.tensor_brain import Shown, TensorBrain
from regard.studies.tensor_brain import divergence as apart

MAP, LOOKED = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0, 2.0])


def test_measures_of_gaze_by_hand():
    """A map of mean 2.5 and variance 1.25, looked at once at 2 and twice at 4."""
    assert normalised_scanpath_saliency(MAP, LOOKED) == pytest.approx((-0.5 + 2 * 1.5) / 1.25**0.5 / 3)
    assert area_under_curve(MAP, LOOKED) == pytest.approx(3 / 4)
    assert area_under_curve(torch.ones(4), LOOKED) == 0.5
    assert correlation(MAP, LOOKED) == pytest.approx(2.5 / (5 * 2.75) ** 0.5)
    assert correlation(torch.ones(4), LOOKED) == 0
    assert divergence(MAP, LOOKED) == pytest.approx(math.log(1 / 3 / 0.2) / 3 + 2 / 3 * math.log(2 / 3 / 0.4))
    assert edit_similarity([1, 2, 3, 4], [1, 3, 4]) == pytest.approx(3 / 4)
    path = [(0.0, 0.0), (0.0, 3.0), (4.0, 3.0)]
    assert scan_match(path, path, 10.0) == 1
    assert scan_match(path, [(0.0, 1.0), (4.0, 3.0)], 10.0) == pytest.approx((0.9 + 1) / 3)
    assert scan_match([(0.0, 0.0)], [(9.0, 0.0)], 3.0) == 0
    for one, other in ((path, path[1:]), (path[1:], path)):  # the first of the longer one is left out
        assert scan_match(one, other, 10.0, gap=-0.25) == pytest.approx((len(path) - 1 - 0.25) / len(path))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"^fixations: got shape \(3,\), want the shape of the map, \(4,\)"):
        normalised_scanpath_saliency(MAP, torch.ones(3))
    with pytest.raises(ValueError, match=r"^fixations: got 4 of 4 places"):
        area_under_curve(MAP, torch.ones(4))


def test_gaze_that_is_attended_to_costs_nothing():
    model = GazePool(5, 3, 7).double()
    images, labels = torch.randn(4, 1, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    plain = model.loss(images, labels, model.maps(images).detach(), 0.0)
    torch.testing.assert_close(model.loss(images, labels, model.maps(images).detach(), 3.0), plain)
    assert model.loss(images, labels, torch.eye(25, dtype=torch.float64)[:4], 3.0) > plain + 1


def test_tokens_of_a_scanpath_are_places_in_their_order_by_hand():
    model = ScanpathReader(5, 3, 7, longest=4).double()
    images, path = torch.randn(2, 1, 5, 5, dtype=torch.float64), torch.tensor([[3, 24, 0], [7, 7, 1]])
    lengths = torch.tensor([3, 2])
    out, shares = model(images, path, lengths), model.shares(images, path, lengths)
    h = GazePool.parts(model, images)[2][:, 0]
    for row, count in enumerate(lengths.tolist()):
        tokens = h[row, path[row, :count]] + model.order[:count]
        a = (model.key(tokens) @ model.query / 7**0.5).softmax(0)
        torch.testing.assert_close(shares[row, :count], a)
        torch.testing.assert_close(out[row], model.out(a @ tokens))
    assert shares[1, 2] == 0
    assert (model(images, path.flip(1), lengths) - out).abs().max() > 1e-6
    with pytest.raises(ValueError, match=r"^path: got 1 to 5 steps, want 1 to 4"):
        model(images, torch.zeros(2, 5, dtype=torch.int64), torch.tensor([1, 5]))


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_what_is_selected_is_no_farther_from_the_rest_than_it_can_be(count, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    weights, x = scores.softmax(-1), torch.randn(7, 3, generator=generator, dtype=torch.float64)
    apart, most = distance_to_rest(weights, x, count)
    assert (apart <= most + 1e-12).all()
    low, high = weight_range(scores)
    assert (weights >= low[:, None]).all()
    assert (weights <= high[:, None]).all()


def test_bounds_of_softmax_are_met_by_hand():
    """Two even tokens as far as they can be; one token that has nearly all; even scores."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    apart, most = distance_to_rest(torch.tensor([[0.5, 0.5], [0.9, 0.1]]), x, 1)
    torch.testing.assert_close(apart, torch.tensor([1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(most, torch.tensor([1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-7)
    low, high = weight_range(torch.zeros(1, 4))
    assert low.item() == high.item() == 0.25
    with pytest.raises(ValueError, match=r"^count: got 2, want 1 to 1"):
        distance_to_rest(torch.ones(1, 2) / 2, x, 2)


def test_the_bounded_fit_is_that_of_projected_descent():
    generator = torch.Generator().manual_seed(0)
    features, y = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((11, 5), (11,)))
    plain = torch.linalg.lstsq(features, y[:, None]).solution[:, 0]
    torch.testing.assert_close(bounded_fit(features, y, 100.0), plain)
    radius, v = plain.norm().item() / 3, torch.zeros(5, dtype=torch.float64)
    for _ in range(4000):
        v = v - 0.02 * features.mT @ (features @ v - y)
        v = v * min(1.0, radius / v.norm().item())
    found = bounded_fit(features, y, radius)
    assert found.norm().item() == pytest.approx(radius)
    torch.testing.assert_close(found, v, rtol=0, atol=1e-6)
    wide = bounded_fit(features.mT, torch.ones(5, dtype=torch.float64), 1e-2)
    assert wide.norm().item() == pytest.approx(1e-2)


@pytest.mark.parametrize("kink", [True, False])
def test_attention_follows_from_weights_as_steps_get_small(kink):
    errors = []
    for rate in (0.2, 0.02):
        z, told = JointDynamics(world(4, 3, 0.5), kind="exp", kink=kink, rate=rate).train(round(20 / rate), 0)
        errors.append(((z - told).norm() / z.norm()).item())
    assert errors[1] < 0.2 * errors[0] < 0.02


def test_one_step_of_softmax_is_the_equation_by_hand():
    """After a step from z = 0, z is the step of Σ_k w_k ẇ_k ⊙ … to first order, with the second term of b̄."""
    study = JointDynamics(world(2, 2, 0.5), hidden=3, kink=False, rate=1e-4, batch=1, length=400)
    z, told = study.train(1, 3)
    assert (z - told).norm() < 1e-2 * z.norm()


def test_leaves_come_together_as_their_common_ancestor_says():
    """Over 40,000 draws, the covariance of the query with leaves of each height; the answer is the latent above it."""
    tree = LatentTree(3, 0.1)
    levels = tree.levels(40_000, torch.Generator().manual_seed(0))
    leaves = levels[-1].double()
    both = ((leaves[:, :1] - 0.5) * (leaves[:, 1:] - 0.5)).mean(0)
    wanted = 0.8 ** (2.0 * tree.heights) / 4
    torch.testing.assert_close(both, wanted.double(), rtol=0, atol=0.006)
    assert tree.heights.tolist() == [1, 2, 2, 3, 3, 3, 3]
    answer, shares = tree.draw(500, torch.Generator().manual_seed(1))
    levels = tree.levels(500, torch.Generator().manual_seed(1))
    assert torch.equal(answer, levels[2][:, 0])
    assert torch.equal(shares[levels[-1][:, 1:].any(1)] > 0, (levels[-1][:, 1:] > 0)[levels[-1][:, 1:].any(1)])


def test_entropy_falls_for_good_or_comes_back():
    pull = torch.tensor(joint.PULLS, dtype=torch.float64)
    linear, kinked = flow(pull, True, 5000), flow(pull, False, 20_000)
    assert (linear.diff() <= 0).all()
    logs = (pull.square() / 2).log_softmax(-1)
    assert kinked[-1].item() == pytest.approx(-(logs.exp() * logs).sum().item(), abs=1e-6)
    assert kinked.min() < kinked[-1] - 0.01


def test_one_query_alone_is_the_layer_of_one_query():
    """From the same draws; and of two queries each has all tokens as often as the other."""
    one = Snap(world(3, 5, 0.4), 16, 8, 1.0, 0.5)
    shared = SharedSnap(one.chances[None], 16, 8, 1.0, 0.5)
    torch.testing.assert_close(shared.train(20, 0)[0], one.train(20, 0)[0])
    chances = crossed(4, 0.4)
    torch.testing.assert_close(chances[0, 0], torch.tensor([0.2, 0.2, 0, 0] + [0.1] * 4 + [0.05] * 4))
    torch.testing.assert_close(chances[1, 1], torch.tensor([0.1] * 4 + [0, 0, 0.2, 0.2] + [0.05] * 4))
    torch.testing.assert_close(chances[0].mean(0), chances[1].mean(0))


def test_several_tasks_are_one_by_one():
    """Of one task it is the network of one; of two, with heads that read one each, two networks."""
    one = RegressionHeads(3, 2, torch.Generator().manual_seed(0)).double()
    several = SeveralRegressions(3, 1, 2, torch.Generator().manual_seed(1)).double()
    several.load_state_dict({"product": one.product, "read": one.read[:, None]})
    scales = torch.tensor([0.5, 1.0, 2.0])
    x, y, query, answer = several_prompts(4000, 7, scales, 0.0, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.std((0, 1)), scales, rtol=0.05, atol=0)
    beta = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close((query[:, None] @ beta)[:, 0], answer, rtol=1e-2, atol=1e-2)
    x, y, query = x[:5].double(), y[:5].double(), query[:5].double()
    torch.testing.assert_close(several(x, y[..., :1], query)[:, 0], one(x, y[..., 0], query))
    hand = torch.einsum("bd,d,bld,blt->bt", query, scales.double(), x, y) / 7
    torch.testing.assert_close(step_of_descent(x, y, query, scales.double()), hand)


def test_numbers_match_by_hand():
    """Below 10: 3 and 7 make 10, 5 itself twice; 1, 3 and 6 make 10, and 0 itself three times."""
    told = matches(torch.tensor([[3, 7, 5, 1], [0, 4, 9, 8]]), 10)
    assert told.tolist() == [[True, True, True, False], [True, False, False, False]]
    three = matches(torch.tensor([[1, 3, 6], [0, 2, 7], [2, 2, 2]]), 10, triples=True)
    assert three.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    numbers = torch.randint(53, (200, balanced(53, True)), generator=torch.Generator().manual_seed(0))
    assert abs(matches(numbers, 53, True).double().mean().item() - 0.5) < 0.1
    pairs = torch.randint(53, (200, balanced(53, False)), generator=torch.Generator().manual_seed(0))
    assert torch.equal(told_pairs(pairs, 53), matches(pairs, 53))


def test_the_bound_of_entropy_is_met_by_two_levels_of_scores():
    """Scores m inside of four keys and zero at the other eight: the bound is the entropy itself."""
    for margin in (0.0, 0.7, 3.0):
        logs = torch.cat([torch.full((4,), margin), torch.zeros(8)]).double().log_softmax(0)
        entropy = -(logs.exp() * logs).sum().item()
        assert entropy_bound(torch.tensor(margin).double(), 4, 8).item() == pytest.approx(entropy)


def test_rows_with_a_margin_keep_to_the_bound():
    scores = torch.randn(500, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, :4] += 3
    margin = scores[:, :4].amin(1) - scores[:, 4:].amax(1)
    logs = scores.log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1)
    ahead = margin > 0
    assert ahead.sum() > 50
    assert (entropy <= entropy_bound(margin, 4, 8) + 1e-9)[ahead].all()


def test_a_strong_dial_cuts_blocks_exactly():
    study = Localist(texts=8)
    w, _ = study.train(1.0, 40, 0)
    parts = study.parts(w)
    assert parts.count_nonzero() == parts.diagonal().count_nonzero() == 4
    assert study.train(0.0, 40, 0)[0].count_nonzero() == w.numel()


def test_recruitment_stops_at_one_cloud_and_finds_three():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    assert recruit(x) == 1
    assert recruit(x + 20 * torch.eye(3, dtype=torch.float64)[torch.arange(200) % 3]) == 3


def test_bursts_are_what_they_say():
    bursts = Bursts(500, 4, seed=1)
    tokens, label = bursts.batch(6, torch.Generator().manual_seed(0))
    assert tokens.shape == (6, 17, 128)
    places = tokens[..., :65].argmax(-1)
    assert (places.diff(dim=1) == 1).all()
    points, names = bursts.world()
    for row in range(6):
        classes = [int((points @ tokens[row, i, 65:]).argmax()) for i in range(0, 17, 2)]
        shown = [int((names @ tokens[row, i, 65:]).argmax()) for i in range(1, 17, 2)]
        assert shown == [each % 32 for each in classes[:-1]]
        assert classes[:-1].count(classes[-1]) >= 4
        assert label[row] == classes[-1] % 32
    tokens, label = bursts.batch(6, torch.Generator().manual_seed(0), "context")
    same = torch.cdist(tokens[:, -1:, 65:], tokens[:, :-1:2, 65:])[:, 0].argmin(1)
    heard = tokens[torch.arange(6), 2 * same + 1, 65:] @ names.T
    assert torch.equal(heard.argmax(1), label)


def test_two_layers_of_attention_by_hand():
    bursts = Bursts(20, 1, seed=0)
    model, (tokens, _) = InductionNet(bursts).double(), bursts.batch(2, torch.Generator().manual_seed(0))
    u = tokens = tokens.double()
    for layer in model.layers:
        out = u.clone()
        q, k, v = (u @ part.T for part in layer.weight.chunk(3))
        for b in range(2):
            for i in range(17):
                shares = (k[b, : i + 1] @ q[b, i] / 128**0.5).softmax(0)
                out[b, i] += shares @ v[b, : i + 1]
        u = out
    torch.testing.assert_close(model(tokens), model.classify(u[:, -1]))


def test_three_nested_logits_by_hand():
    """At zero all labels of the context are alike; 2 pairs of 3 labels, at β = ln 4, α = 2 ln 4 and ξ = 2."""
    assert NestedLogits().chance(torch.zeros(3)).item() == pytest.approx(1 / 32)
    logits = torch.tensor([math.log(4), 2 * math.log(4), 2.0], dtype=torch.float64)
    chances = math.exp(1), math.exp(2 * 0.5 / 4), 1
    assert NestedLogits(pairs=2, labels=3).chance(logits).item() == pytest.approx(chances[0] / sum(chances))


def test_logits_that_are_given_stay_and_others_go_down_the_loss():
    """One step of the readout, by differences of the loss."""
    model, step = NestedLogits(1), 1e-6
    ends = [-model.chance(torch.tensor([20.0, 20.0, x], dtype=torch.float64)).log() for x in (step, -step)]
    slope = ((ends[0] - ends[1]) / (2 * step)).item()
    moved = model.chance(torch.tensor([20.0, 20.0, -0.5 * slope], dtype=torch.float64))
    assert model.train(0.5, 2)[1].item() == pytest.approx(moved.item(), abs=1e-8)


def test_an_induction_head_of_two_strong_parameters_reads_the_label():
    bursts = Bursts(20, 1, seed=0)
    model = InductionNet(bursts, reduced=True)
    with torch.no_grad():
        model.before.fill_(30.0)
        model.match.fill_(60.0)
    tokens, label = bursts.batch(40, torch.Generator().manual_seed(0), "context")
    read = model.maps(tokens)[2][:, 63:]
    assert (read @ bursts.world()[1].T).argmax(1).eq(label).double().mean() > 0.9
    assert abrupt.looks_back(model, bursts) > 0.99


def test_thoughts_are_three_and_hear_nothing_else():
    model, world_of = Thoughts(12, 4).eval(), Factors()
    x, cue, comes, members = world_of.draw(50, torch.Generator().manual_seed(0))
    logits, chosen = model(x, cue)
    assert torch.equal(chosen.sum(-1), torch.full((50, 4), 3.0))
    assert torch.equal(members.sum(1), torch.full((50,), 3.0))
    assert torch.equal(comes > 0, (x * members[:, None]).sum(-1) > 0)
    model.choose = lambda scores: torch.where(torch.arange(12) < 3, 1.0, torch.zeros_like(scores))
    other = x.clone()
    other[:, 3, 3:] *= -1  # the last moment's elements that were not picked
    torch.testing.assert_close(model(other, cue)[0], model(x, cue)[0], rtol=0, atol=0)
    other[:, 3, 0] *= -1
    assert (model(other, cue)[0] - model(x, cue)[0])[:, 3].abs().min() > 0
    assert logits.isfinite().all()


def test_a_choice_does_not_know_what_it_chooses_from():
    model, (x, cue, _, _) = Thoughts(12, 4).eval(), Factors().draw(50, torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 3] *= -1
    assert torch.equal(model(other, cue)[1], model(x, cue)[1])
    other[:, 0] *= -1
    model.train()
    torch.manual_seed(0)
    _, first = model(x, cue)
    torch.manual_seed(0)
    assert not torch.equal(model(other, cue)[1], first)


def test_the_critic_s_bound_by_hand():
    """Two sequences with logits 1 and −2 before a plus and a minus: V of the right future is 1 and 2, of the other −1
    and −2; no thought, no information, and a sure one as much as there is: log 2."""
    logits, comes = torch.tensor([[1.0], [-2.0]]), torch.tensor([[1.0], [0.0]])
    want = -(2 * math.log(2) - math.log(1 + math.exp(-2)) - math.log(1 + math.exp(-4))) / 2
    assert information(logits, comes).item() == pytest.approx(want)
    assert information(torch.zeros(2, 1), comes).item() == pytest.approx(0)
    assert information(50 * logits, comes).item() == pytest.approx(-math.log(2))


def test_a_triple_is_told_and_written_back_by_hand():
    brain, q = TensorBrain(6, 5, scenes=2), torch.randn(1, 5)
    total, now = 0.0, q[0]
    for concept in (1, 3, 4):
        logs = torch.stack([brain.index[k] @ now + brain.bias[k] for k in range(6)]).log_softmax(0)
        total += logs[concept].item()
        now = now + brain.index[concept]
        now = now + torch.tanh(brain.work(now))
    assert brain.score(q, torch.tensor([[1, 3, 4]])).item() == pytest.approx(total, abs=1e-5)
    shown = Shown()
    assert shown.chances.sum().item() == pytest.approx(1)
    every = torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.arange(6))
    assert brain.score(brain.begin(count=len(every)), every).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert apart(brain, shown) > 0


def test_a_brain_samples_as_it_scores_and_remembers_the_scene_before():
    brain, count = TensorBrain(4, 5), 20_000
    told, q = brain.sample(brain.begin(count=count), torch.Generator().manual_seed(0), 2)
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    wanted = brain.score(brain.begin(count=16), every).exp()
    often = torch.bincount(4 * told[:, 0] + told[:, 1], minlength=16) / count
    torch.testing.assert_close(often, wanted, rtol=0, atol=0.015)
    q.sum().backward()
    assert brain.bias.grad.abs().min() > 0
    with torch.no_grad():
        chances, own = brain.logits(brain.rest).softmax(-1), brain.write(brain.rest[None], told[:1, 0])
        torch.testing.assert_close(brain.write(own, told[:1, 1])[0], q[0].detach())
    assert chances.argmax() == brain.tell(brain.begin(), 1)[0, 0]
    last = torch.arange(4) == 3
    assert brain.tell(brain.begin(count=2), 2, [last, ~last]).tolist()[0][0] == 3
    images, before = torch.randn(2, 1, 16, 16), torch.randn(2, 5)
    kept = brain.senses(images) + torch.tanh(brain.work(before))
    torch.testing.assert_close(brain.begin(images, before=before), kept)


def test_questions_have_their_answers():
    kinds = torch.tensor([[2, 0, 2]] * 200)
    question, answers = Looks().ask(kinds, torch.Generator().manual_seed(0))
    for (which, first, second), answer in zip(question.tolist(), answers.tolist(), strict=True):
        row = [2, 0, 2]
        wanted = {0: row[first % 3], 1: KINDS + (row[first % 3] == row[second % 3]), 2: KINDS + 2 + row.count(first)}
        assert answer == wanted[which]
    model = SceneReader()
    assert model(question, kinds=kinds).shape == (200, KINDS + 2 + 4)


def test_every_mechanism_is_tagged_by_what_it_says():
    assert tags("softmax") == dict(zip(TAXONOMY, ("distinctive", "single", "soft", "single"), strict=True))
    assert tags("window")["positions"] == "local"
    assert tags("moba")["positions"] == "hard"
    assert tags("tree")["levels"] == "multi"
    assert tags("gla")["representations"] == "multi_dimensional"
    assert "moba" in [entry.name for entry in having("positions", "hard")]
    with pytest.raises(LookupError, match=r"^dimension: got 'places', want one of sequences"):
        next(having("places", "soft"))
    assert tags("bidaf")["sequences"] == "co"
    assert [entry.name for entry in having("representations", "multi")] == ["bidaf", "multi_source"]
    with pytest.raises(TypeError, match=r"^name: got 'shvit', a network, want a mechanism, or one of bidaf"):
        tags("shvit")


def test_a_dial_that_does_nothing_is_not_monotone():
    rows = [{"fields": ["dial"], "dial": dial, "inside": 0.5} for dial in locality.DIALS for _ in range(2)]
    assert not locality.is_monotone(Figures(rows)).held


def test_kruskal_ranks_by_hand_and_what_is_degenerate():
    x = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.float64)
    assert kruskal_rank(x) == 2  # the first, second and fourth lie in a plane
    assert kruskal_rank(x[:3]) == 3
    assert kruskal_rank(torch.cat([x, 2 * x[:1]])) == 1
    assert kruskal_rank(torch.cat([x, 0 * x[:1]])) == 0
    generator = torch.Generator().manual_seed(0)
    context, query = (torch.rand(size, generator=generator, dtype=torch.float64) for size in ((5, 3, 4), (5, 4)))
    assert is_general(context, query)
    assert not is_general(torch.cat([context, context[:1, [0, 1, 1]]]), query)
    assert not is_general(context, torch.cat([query, query[:1]]))
    with pytest.raises(ValueError, match=r"^context: got 5 tokens of 4 numbers"):
        is_general(torch.ones(1, 5, 4), query)


def test_heads_that_are_trained_read_what_heads_do():
    """One head, one example of two tokens: softmax of x · K Qᵀ e over them, weighed by v."""
    memory = Memory(1, 3, 2, torch.Generator().manual_seed(0))
    x, e = torch.randn(1, 2, 3), torch.randn(1, 3)
    scores = torch.stack([(memory.k[0].mT @ token) @ (memory.q[0].mT @ e[0]) for token in x[0]])
    torch.testing.assert_close(memory(x, e), ((scores.softmax(0) @ x[0]) @ memory.v)[None])


def test_drawn_shapes_are_a_square_a_diamond_a_plus_and_a_cross():
    """Of 25, 13, 9 and 9 cells; a plus has the middle row, a cross the corners."""
    square, diamond, plus, cross = Shown().stencils()
    assert [shape.sum().item() for shape in (square, diamond, plus, cross)] == [25, 13, 9, 9]
    assert plus[2].tolist() == [1] * 5
    assert diamond[0].tolist() == plus[0].tolist() == [0, 0, 1, 0, 0]
    assert cross[0].tolist() == [1, 0, 0, 0, 1]


def test_it_looks_again_until_the_answer_is_verified():
    """Looks give 3, 1, 4, 1; the sum so far is 3, 4, 8, 9, of which 8 is the first above 7."""
    looks = [3, 1, 4, 1]
    assert until_verified(looks.__getitem__, sum, lambda told: told > 7, most=4) == (8, 3)
    assert until_verified(looks.__getitem__, sum, lambda told: told > 7, most=2) == (4, 2)
    assert until_verified(looks.__getitem__, sum, lambda told: True, most=4) == (3, 1)
    with pytest.raises(ValueError, match="most: got 0, want at least one look"):
        until_verified(looks.__getitem__, sum, lambda told: True, most=0)
