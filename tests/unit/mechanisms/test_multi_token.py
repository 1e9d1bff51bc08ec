"""Multi-token attention: the identity start, nothing from the future, and the toy task of its paper."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core.layout import Layout

CAUSAL = Layout(causal=True)


def draw(n, heads=4, dim=8):
    torch.manual_seed(0)
    return [torch.randn(2, heads, n, dim, dtype=torch.float64) for _ in range(3)]


def drawn_kernels(**sizes):
    mechanism = regard.build("multi_token", **sizes).double()
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mechanism


def test_untrained_it_is_softmax_attention():
    """Multi-token attention with identity kernels is softmax attention, to 1e-6 and better, over tiles too."""
    q, k, v = draw(n=600)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(regard.build("multi_token")(q, k, v, CAUSAL), want, atol=1e-12, rtol=0)


def test_its_scores_are_the_double_sum():
    """Each score is the sum over earlier queries and near keys, where the one sees the other; then heads are mixed."""
    n, taps, width = 11, 3, 5
    q, k, v = draw(n)
    mechanism = drawn_kernels(query_taps=taps, key_taps=width, group=2)
    scores = (q @ k.mT * 8**-0.5).tolist()
    kernel, maps = mechanism.kernel.tolist(), torch.zeros(2, 4, n, n, dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(2) for h in range(4) for i in range(n)):
        row = [
            sum(
                kernel[h][taps - 1 - back][width // 2 + side] * scores[b][h][i - back][j + side]
                for back in range(taps)
                for side in range(-(width // 2), width // 2 + 1)
                if 0 <= j + side <= i - back
            )
            for j in range(i + 1)
        ]
        maps[b, h, i, : i + 1] = torch.softmax(torch.tensor(row, dtype=torch.float64), 0)
    mixed = torch.cat(
        [torch.einsum("hg,bgij->bhij", w, part) for w, part in zip(mechanism.mix, maps.split(2, 1), strict=True)], 1
    )
    torch.testing.assert_close(mechanism.weights(q, k, CAUSAL), mixed, atol=1e-12, rtol=0)
    torch.testing.assert_close(mechanism(q, k, v, CAUSAL), mixed @ v, atol=1e-12, rtol=0)


def test_later_tokens_change_nothing_earlier():
    """Editing tokens leaves all earlier outputs as they are, bit for bit, and changes its own."""
    q, k, v = draw(n=300)
    mechanism = drawn_kernels()
    before = mechanism(q, k, v, CAUSAL)
    for x in (q, k, v):
        x[:, :, 290:] += 1
    after = mechanism(q, k, v, CAUSAL)
    assert torch.equal(before[:, :, :290], after[:, :, :290])
    assert (before - after)[:, :, 290:].abs().amin() > 0


@pytest.mark.parametrize(
    ("argument", "sizes"),
    [("heads", {"heads": 0}), ("key_taps", {"key_taps": 4}), ("group", {"heads": 4, "group": 3})],
)
def test_bad_sizes_are_named(argument, sizes):
    with pytest.raises(ValueError, match=argument):
        regard.build("multi_token", **sizes)


def test_other_heads_are_refused():
    q, k, v = draw(5)
    with pytest.raises(ValueError, match="q: got 4 heads, want the 2 heads"):
        regard.build("multi_token", heads=2)(q, k, v, CAUSAL)
