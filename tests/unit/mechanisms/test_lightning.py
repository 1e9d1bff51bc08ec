"""Lightning Attention-2: the quadratic form in linear time, with a state of fixed size."""

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.linear.lightning import Lightning
from regard.mechanisms.slopes import alibi_slopes

CAUSAL = Layout(causal=True)


def quadratic(q, k, v, slopes):
    """The paper's reference: the product, times a table of powers, times the values."""
    n = q.shape[2]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    table = torch.exp(-torch.tensor(slopes, dtype=q.dtype)[:, None, None] * distance).tril()
    return (q @ k.mT * table.nan_to_num(posinf=0).tril()) @ v


@pytest.mark.parametrize("n", [64, 257, 1153])
def test_equals_the_quadratic_form_with_gradients(n):
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 4, n, size, dtype=torch.float64) for size in (17, 17, 19))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    single = [x.detach().float().requires_grad_() for x in leaves]
    want, got = quadratic(*leaves, alibi_slopes(4)), Lightning()(*single, CAUSAL)
    assert relative(got, want) < 1e-4
    gradients = [torch.autograd.grad(out.square().sum(), x) for out, x in ((want, leaves), (got, single))]
    for theirs, mine in zip(*gradients, strict=True):
        assert relative(mine, theirs) < 1e-4


def relative(got, want):
    return ((got.double() - want).abs().max() / want.abs().max()).item()


def test_decoding_equals_one_call_from_a_state_of_constant_size():
    torch.manual_seed(3)
    mechanism, sizes = Lightning(), set()
    q, k, v = (torch.randn(2, 4, 331, 17) for _ in range(3))
    state, outputs = mechanism.start(2), []
    for token in range(331):
        out, state = mechanism.extend(*(x[:, :, token : token + 1] for x in (q, k, v)), state)
        outputs.append(out)
        sizes.add(state.bytes)
    assert relative(torch.cat(outputs, 2), mechanism(q, k, v, CAUSAL).double()) < 1e-4
    assert sizes == {2 * 4 * 17 * 17 * 4}


def test_decay_that_underflows_leaves_each_token_to_itself():
    q, k, v = (torch.randn(1, 1, 211, 7, requires_grad=True) for _ in range(3))
    out = Lightning(slopes=[1e4])(q, k, v, CAUSAL)
    torch.testing.assert_close(out, (q * k).sum(-1, keepdim=True) * v)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


def test_default_slopes_are_those_of_the_papers_code():
    assert alibi_slopes(8) == pytest.approx([2.0**-t for t in range(1, 9)])
    assert alibi_slopes(3) == pytest.approx([2**-4, 2**-8, 2**-2])
