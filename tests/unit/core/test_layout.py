"""Visibility on hand-checkable cases."""

import pytest
import torch

from regard import Layout, build
from regard.patterns import parse_pattern


def seen(layout: Layout, n: int, m: int) -> list[list[str]]:
    """The visible keys as strings of x and . per query, per sequence."""
    return [["".join("x" if cell else "." for cell in row) for row in page[0]] for page in layout.allowed(n, m)]


def test_causal_is_aligned_at_the_end():
    assert seen(Layout(causal=True), 2, 5) == [["xxxx.", "xxxxx"]]
    assert seen(Layout(causal=True), 5, 2) == [["..", "..", "..", "x.", "xx"]]
    assert Layout(causal=True).counts(5, 2).tolist() == [[[0, 0, 0, 1, 2]]]


def test_padding_and_documents():
    keys = torch.tensor([[False, True, True], [True, True, False]])
    assert seen(Layout(causal=True, key_mask=keys), 3, 3) == [["...", ".x.", ".xx"], ["x..", "xx.", "xx."]]
    segments = torch.tensor([[0, 0, 1, 1, 1]])
    assert seen(Layout(segments=segments), 5, 5) == [["xx...", "xx...", "..xxx", "..xxx", "..xxx"]]
    assert seen(Layout(causal=True, segments=segments), 2, 5) == [["..xx.", "..xxx"]]


@pytest.mark.parametrize(("n", "m"), [(7, 7), (3, 11), (11, 3)])
def test_rows_of_allowed_are_rows(n, m):
    layout = Layout(causal=True, key_mask=torch.rand(2, m) < 0.7)
    assert torch.equal(layout.allowed(n, m, rows=slice(1, 3)), layout.allowed(n, m)[:, :, 1:3])


@pytest.mark.parametrize(("n", "m"), [(7, 7), (3, 11), (11, 3)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_slice_sees_what_its_rows_saw(n, m, causal):
    layout = Layout(causal=causal, key_mask=torch.rand(2, m) < 0.7)
    cut, kept = layout.slice(n, m, slice(1, 3))
    whole = layout.allowed(n, m)[:, :, 1:3]
    assert torch.equal(cut.allowed(2, kept), whole[..., :kept])
    assert not whole[..., kept:].any()


@pytest.mark.parametrize(("n", "m"), [(7, 7), (3, 11), (11, 3)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sizes", [(2, 5), (1, 5), (2, 1), (1, 1)])
def test_a_mask_hides_pairs_and_moves_nobody(n, m, causal, sizes):
    plain = Layout(causal=causal, key_mask=torch.rand(2, m) < 0.7)
    mask = torch.rand(*sizes, n, m) < 0.6
    layout = Layout(causal=causal, key_mask=plain.key_mask, mask=mask)
    whole = layout.allowed(n, m)
    assert torch.equal(whole, plain.allowed(n, m) & mask)
    assert torch.equal(layout.allowed(n, m, rows=slice(1, 3)), whole[:, :, 1:3])
    assert torch.equal(layout.counts(n, m).expand(whole.shape[:3]), whole.sum(-1))
    assert torch.equal(layout.positions(m), plain.positions(m))
    assert torch.equal(layout.query_positions(n, m), plain.query_positions(n, m))
    cut, kept = layout.slice(n, m, slice(1, 3))
    assert torch.equal(cut.allowed(2, kept), whole[:, :, 1:3, :kept])
    assert not whole[:, :, 1:3, kept:].any()
    for b, h in ((0, 0), (1, 4)):
        assert torch.equal(layout.of(b, h).allowed(n, m)[0, 0], whole.expand(2, 5, n, m)[b, h])


def test_positions_count_real_tokens():
    keys = torch.tensor([[False, False, True, True, True], [True, True, False, True, False]])
    layout = Layout(causal=True, key_mask=keys)
    assert layout.positions(5)[0, 2:].tolist() == [0, 1, 2]
    assert layout.positions(5)[1, [0, 1, 3]].tolist() == [0, 1, 2]
    assert layout.query_positions(2, 5)[:, 0].tolist() == [1, 2]
    assert Layout().query_positions(5, 3).tolist() == [[-2, -1, 0, 1, 2]]


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        (Layout(key_mask=torch.ones(2, 4)), TypeError, r"layout\.key_mask: got dtype torch\.float32, want torch\.bool"),
        (
            Layout(key_mask=torch.ones(2, 5).bool()),
            ValueError,
            r"layout.key_mask: got shape \(2, 5\), want \(batch, m\) = \(2, 4\)",
        ),
        (Layout(segments=torch.ones(2, 4)), TypeError, "layout.segments: got dtype torch.float32"),
        (Layout(grid=(2, 3)), ValueError, r"layout.grid: got \(2, 3\), want 1 to 3 sizes whose product is the 4 keys"),
        (Layout(grid=(1, 1, 2, 2)), ValueError, "layout.grid"),
        (Layout(mask=torch.zeros(1, 1, 3, 4)), TypeError, r"layout.mask: got dtype torch.float32, .*`mask == 0`"),
        (
            Layout(mask=torch.ones(3, 4).bool()),
            ValueError,
            r"layout.mask: got shape \(3, 4\), want .*n, m\) = \(2 or 1, 1 or 1, 3, 4\)",
        ),
        (Layout(mask=torch.ones(2, 1, 4, 3).bool()), ValueError, r"layout.mask: got shape \(2, 1, 4, 3\)"),
        (Layout(mask=torch.ones(3, 1, 3, 4).bool()), ValueError, r"layout.mask: got shape \(3, 1, 3, 4\)"),
        (Layout(mask=torch.ones(2, 2, 3, 4).bool()), ValueError, r"layout.mask: got shape \(2, 2, 3, 4\)"),
    ],
)
def test_misfits_are_named(layout, error, message):
    q, k = torch.randn(2, 1, 3, 5), torch.randn(2, 1, 4, 5)
    with pytest.raises(error, match=message):
        layout.check(q, k)


def test_packing_needs_a_key_for_each_query():
    with pytest.raises(ValueError, match=r"layout.segments: got 3 queries over 2 keys, want no more queries than keys"):
        Layout(segments=torch.zeros(1, 2).long()).check(torch.randn(1, 1, 3, 5), torch.randn(1, 1, 2, 5))


@pytest.mark.parametrize(
    ("arguments", "signals", "message"),
    [
        ((torch.ones(6, 6).bool(),), {}, r"layout: got a tensor of torch.bool, want a Layout: Layout\(mask=…\) .*True"),
        ((), {"attn_mask": torch.ones(6, 6)}, r"attn_mask: got an unknown signal, want Layout\(mask=…\)"),
        ((), {"attention_mask": torch.ones(1, 6)}, r"attention_mask: .*Layout\(key_mask=…\) \(batch, m\) for padding"),
        ((), {"is_causal": True}, r"is_causal: got an unknown signal, want layout=Layout\(causal=True\)"),
        ((), {"attn_bias": torch.ones(6, 6)}, r"attn_bias: got an unknown signal, want .*composed\(bias=alibi\)"),
        ((), {"window": 3}, r"window: got an unknown signal, want one of Softmax's: no signals"),
    ],
)
def test_what_other_libraries_take_is_told_in_ours(arguments, signals, message):
    q = torch.randn(1, 2, 6, 5)
    with pytest.raises(TypeError, match=message):
        build("softmax")(q, q, q, *arguments, **signals)


@pytest.mark.parametrize("call", [parse_pattern, lambda mask: build("pattern", of=mask)])
def test_a_mask_is_no_pattern(call):
    with pytest.raises(TypeError, match=r"pattern: got a Tensor, want a Pattern, .*each call: Layout\(mask=…\)"):
        call(torch.ones(6, 6).bool())


@pytest.mark.parametrize("own", [True, False])
def test_sequences_that_stand_several_times_have_what_they_had(own):
    """Masks and biases of each sequence, or one for all; head by head too."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.rand(3, 7, generator=generator) > 0.3
    segments = torch.randint(0, 2, (3, 7), generator=generator).cumsum(1)
    mask = torch.rand(3 if own else 1, 2, 5, 7, generator=generator) > 0.3
    bias = torch.randn(3 if own else 1, 1, 5, 7, generator=generator)
    layout = Layout(key_mask=keys, segments=segments, mask=mask, bias=bias)
    many = layout.repeated(2)
    assert (many.key_mask.shape, many.segments.shape) == ((6, 7), (6, 7))
    for place in range(6):
        for head in (None, 0, 1):
            part, row = many.of(place, head), place // 2
            own_row, heads = row if own else 0, slice(None) if head is None else slice(head, head + 1)
            assert torch.equal(part.key_mask, keys[row : row + 1])
            assert torch.equal(part.segments, segments[row : row + 1])
            assert torch.equal(part.mask, mask[own_row : own_row + 1, heads])
            assert torch.equal(part.bias, bias[own_row : own_row + 1])
    assert Layout(causal=True).repeated(4) == Layout(causal=True)
