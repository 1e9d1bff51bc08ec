"""Multi-token attention: the identity start, nothing from the future, and the toy task of its paper."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core.layout import Layout
from regard.networks.lm import LM, Config
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)
LETTERS, LENGTH, BLOCKS, QUESTIONS = 26, 5, 5, 6
STOP, ASK = LETTERS, LETTERS + 1
ANSWERS = BLOCKS * (LENGTH + 1) + 4 * torch.arange(1, QUESTIONS + 1) - 1


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


def blocks(count, generator):
    """``(count, n)``: blocks of letters, then questions: two letters of one block only, and its first letter."""
    letters = torch.rand(count, BLOCKS, LETTERS, generator=generator).argsort(-1)[..., :LENGTH]
    text = [F.pad(letters, (0, 1), value=STOP).flatten(1)]
    for _ in range(QUESTIONS):
        block = letters[torch.arange(count), torch.randint(BLOCKS, (count,), generator=generator)]
        held = (letters[:, :, None] == block[:, None, :, None]).any(-1)  # (count, BLOCKS, LENGTH)
        both = (held[:, :, :, None] & held[:, :, None]).sum(1) > 1
        pairs = torch.rand(count, LENGTH, LENGTH, generator=generator).masked_fill(both, -1)
        best = pairs.masked_fill(torch.eye(LENGTH, dtype=torch.bool), -1).flatten(1).argmax(1, keepdim=True)
        asked = block.gather(1, torch.cat([best // LENGTH, best % LENGTH], 1))
        text += [torch.full((count, 1), ASK), asked, block[:, :1]]
    return torch.cat(text, 1)


@pytest.mark.slow
def test_it_finds_the_block_that_holds_the_letters(record_property):
    """Asked for the block that holds two letters, multi-token attention errs below 5%, softmax attention above 30%."""
    held_out, errors = blocks(1000, torch.Generator().manual_seed(99)), {}
    for layers in ("multi_token(query_taps=2, key_taps=9, group=1)*2", "softmax*2"):
        model = LM(Config(LETTERS + 2, 64, layers, heads=2), seed=0)

        def loss(model, generator):
            text = blocks(32, generator)
            return F.cross_entropy(model(text)[:, ANSWERS - 1].flatten(0, 1), text[:, ANSWERS].flatten())

        fit(model, loss, Recipe(steps=500, rate=4e-3, decay=0))
        with torch.no_grad():
            found = model(held_out)[:, ANSWERS - 1].argmax(-1)
        errors[layers.split("(")[0].split("*")[0]] = (found != held_out[:, ANSWERS]).float().mean().item()
    record_property("error", ", ".join(f"{kind} {value:.1%}" for kind, value in errors.items()))
    assert errors["multi_token"] < 0.05
    assert errors["softmax"] > 0.3


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
