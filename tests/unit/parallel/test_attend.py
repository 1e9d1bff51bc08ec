"""`regard.parallel.attend` and `Parallel`, by threads: what is refused, and what models do with it."""

import re

import pytest
import torch

import regard
from regard.parallel import Parallel, Plan, attend, simulate
from regard.parallel.state import States

N = 13


def drawn(heads=4, groups=2, n=N, dtype=torch.float64):
    noise = torch.Generator().manual_seed(0)
    shapes = ((1, heads, n, 5), (1, groups, n, 5), (1, groups, n, 7))
    return [torch.randn(shape, generator=noise, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"how": "rings"}, r"^how: got 'rings', want one of ring, .*did you mean 'ring'"),
        ({"how": "tree"}, "^queries: got shards, want queries that every rank holds"),
        ({"how": "state", "causal": True, "scale": 0.3}, "^scale: got 0.3, want None"),
        ({"how": States("gla"), "causal": True}, "^log_decay: got nothing, want the signals log_decay"),
        ({"how": States("retnet")}, "^causal: got False, want True: States takes no other"),
        ({"how": "state", "causal": True, "queries": Plan.sized([N, 0])}, "^q: got 7 tokens, want the 13"),
        ({"beta": torch.zeros(1)}, "^beta: got given, want no signals"),
        ({"shards": Plan.even(N, 3)}, "^plan: got 3 ranks, want the 2 of the group"),
        ({"shards": Plan.replicated(N, 2)}, "^q: got 7 tokens, want the 13"),
        ({"shards": Plan.sized([N - 1, 1])}, "^q: got 7 tokens, want the 12 that rank 0 holds"),
    ],
)
def test_what_does_not_fit_is_named(given, said):
    plan, (q, k, v) = Plan.even(N, 2), drawn()
    named = {"shards": plan, "how": "ring"} | given

    def work(group):
        with pytest.raises((ValueError, TypeError)) as error:
            attend(*(plan.split(x, 2, group.rank) for x in (q, k, v)), group=group, **named)
        return str(error.value)

    assert re.match(said, simulate(2, work, limit=5)[0])


def test_a_past_that_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"^mechanism: got Softmax, whose past is no matrix alone"):
        States("softmax")


def test_no_group_is_one_error():
    with pytest.raises(RuntimeError, match=r"^group: got none, want torch.distributed.init_process_group"):
        attend(*drawn(), Plan.even(N, 1))


@pytest.mark.parametrize("how", ["ring", "gather", "heads", "scores"])
def test_decoding_goes_on_after_a_whole_call(how):
    """From shards in zigzag: each rank keeps its own keys and values, new tokens go where there are fewest."""
    q, k, v = drawn(n=N + 4)
    want = regard.build("softmax")(q, k, v, regard.Layout(causal=True))
    plan = Plan.zigzag(N, 3)

    def work(group):
        mechanism = Parallel(plan, how, group)
        own = [plan.split(x[:, :, :N], 2, group.rank) for x in (q, k, v)]
        outs, state = [mechanism(*own, regard.Layout(causal=True))], mechanism.held(*own[1:])
        for token in range(N, N + 4):
            out, state = mechanism.extend(*(x[:, :, token : token + 1] for x in (q, k, v)), state)
            outs.append(out)
        return outs, state.plan.sizes

    for rank, (outs, sizes) in enumerate(simulate(3, work)):
        torch.testing.assert_close(outs[0], plan.split(want[:, :, :N], 2, rank), atol=1e-12, rtol=0)
        torch.testing.assert_close(torch.cat(outs[1:], 2), want[:, :, N:], atol=1e-12, rtol=0)
        assert sorted(sizes) == [5, 6, 6]


def test_linear_layers_decode_by_their_state():
    q, k, v = drawn()
    mechanism = Parallel(Plan.even(0, 2), "state")
    out, _ = mechanism.extend(q, k, v, mechanism.start(1, dtype=torch.float64))
    torch.testing.assert_close(out, regard.build("linear")(q, k, v, regard.Layout(causal=True)))


def test_padding_and_decoding_kernels_are_refused():
    mechanism, real = Parallel(Plan.even(N, 1)), torch.ones(1, N, dtype=torch.bool)
    real[0, 0] = False
    with pytest.raises(ValueError, match=r"^layout.key_mask: got padding, want none"):
        mechanism(*drawn(), regard.Layout(causal=True, key_mask=real))
    with pytest.raises(ValueError, match=r"^how: got 'tree', want how whole texts run"):
        Parallel(Plan.even(N, 1), "tree")


@pytest.mark.slow
def test_eight_ranks():
    q, k, v = drawn(8, 8, 67)
    want = regard.build("softmax")(q, k, v, regard.Layout(causal=True))
    for plan in (Plan.zigzag(67, 8), Plan.sized([0, 1, 2, 3, 5, 7, 11, 38])):
        outs = simulate(
            8, lambda g, p=plan: attend(*(p.split(x, 2, g.rank) for x in (q, k, v)), p, causal=True, group=g)
        )
        torch.testing.assert_close(plan.join(outs, 2), want, atol=1e-12, rtol=0)
