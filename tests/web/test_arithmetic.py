"""Index arithmetic of the server and of the packed page, against dense recomputation on drawn shapes."""

import zlib
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from regard.records import record as recording
from regard.records.format import Record, bounds
from regard.records.record import record
from regard.web import payload, server
from regard.web.ascii import ALPHABET, decode, encode
from regard.web.cells import codes, values, visible_pairs, weak_means
from regard.web.coding import deflate, planes, varints
from regard.web.payload import pack_edges, page_threshold
from regard.web.server import means
from unit.hosts.models import causal, eager, tokens
from unit.records.test_two_texts import made, marian

QUICK = settings(max_examples=40, deadline=None)


def kept(n: int, heads: int, groups: int, causal: bool, window: int | None, softcap: float | None = None):
    """A record of two layers with what A follows from, and A of the second: ``(heads, n, n)`` with what may be seen."""
    torch.manual_seed(n)
    q, k = torch.randn(heads, n, 5, dtype=torch.float64), torch.randn(groups, n, 5, dtype=torch.float64)
    scores = 0.3 * q @ k.repeat_interleave(heads // groups, 0).mT
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    i, j = torch.arange(n)[:, None], torch.arange(n)
    seen = torch.ones(n, n, dtype=torch.bool)
    if causal:
        seen = (j <= i) & (j > i - (window or n))
    scores = scores.masked_fill(~seen, -torch.inf)
    layer = {"heads": heads, "kv_heads": groups, "scaling": 0.3, "causal": causal, "window": window, "softcap": softcap}
    layers = [layer | {"index": index, "shares": False, "mechanism": "softmax"} for index in (2, 7)]
    tensors = {"q": q.float(), "k": k.float(), "lse": scores.logsumexp(-1).float()}
    every = {f"2/{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()}
    every |= {f"7/{name}": tensor for name, tensor in tensors.items()}
    return Record({"tokens": n, "layers": layers}, {}, {}, every), scores.softmax(-1), seen


def dense_means(weights, seen, rows, keys, step):
    """The same, cell by cell."""
    out = []
    for top in range(rows[0], rows[1], step):
        for left in range(keys[0], keys[1], step):
            part = slice(top, min(top + step, rows[1])), slice(left, min(left + step, keys[1]))
            found = weights[part][seen[part]]
            out.append(found.mean().item() if len(found) else float("nan"))
    return torch.tensor(out).reshape(-(-(rows[1] - rows[0]) // step), -1)


@QUICK
@given(
    n=st.integers(1, 41),
    shape=st.sampled_from([(1, 1), (4, 2), (6, 3), (3, 1)]),
    window=st.none() | st.integers(1, 13),
    causal=st.booleans(),
    softcap=st.sampled_from([None, 0.7]),
    data=st.data(),
)
def test_means_of_any_region_in_bands(n, shape, window, causal, softcap, data):
    """Rows and keys from anywhere, cells that do not divide them, and a few entries formed at a time."""
    window = window if causal else None
    record, weights, seen = kept(n, *shape, causal, window, softcap)
    spans = []
    for _ in range(2):
        first = data.draw(st.integers(0, n - 1))
        spans.append((first, data.draw(st.integers(first + 1, n))))
    head, step, band = (data.draw(st.integers(low, high)) for low, high in ((0, shape[0] - 1), (1, 9), (1, 90)))
    with patch.object(server, "BAND", band):
        got = means(record, 7, head, *spans, step)
    want = dense_means(weights[head], seen, *spans, step)
    torch.testing.assert_close(got, want, equal_nan=True, atol=1e-5, rtol=1e-4)
    part = tuple(slice(*span) for span in spans)
    torch.testing.assert_close(record.region(7, head, *part).double(), weights[head][part], atol=1e-5, rtol=1e-4)


def test_bands_hold_whole_cells():
    """Of 11 keys 30 entries are 2 rows, but a cell has 5: the band is a cell high; with 120 entries it is two."""
    record, *_ = kept(23, 1, 1, True, None)
    for entries, bands in ((30, 5), (120, 3)):
        with patch.object(server, "BAND", entries), patch.object(server, "pooled", wraps=server.pooled) as called:
            means(record, 7, 0, (0, 23), (3, 14), 5)
        assert called.call_count == bands


def test_slices_as_python_has_them():
    assert bounds("rows", slice(None), 7) == (0, 7)
    assert bounds("rows", slice(-3, None), 7) == (4, 7)
    assert bounds("rows", slice(2, 100), 7) == (2, 7)
    for bad in (slice(3, 3), slice(5, 2), slice(0, 7, 2)):
        with pytest.raises(ValueError, match="rows: got slice"):
            bounds("rows", bad, 7)


def unpacked(blob: bytes) -> list[int]:
    """The numbers of packed edges, as the page reads them."""
    numbers, value, shift = [], 0, 0
    for byte in zlib.decompress(blob, -15):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    return numbers


@QUICK
@given(data=st.data(), n=st.integers(1, 12), threshold=st.integers(1, 1000))
def test_edges_are_unpacked_as_they_were(data, n, threshold):
    """Rows without edges, heads without edges, and those that the threshold leaves out."""
    rows = [
        data.draw(
            st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 1000)), max_size=4, unique_by=lambda e: e[0])
        )
        for _ in range(n)
    ]
    rows = [sorted(row) for row in rows]
    offsets = np.cumsum([0, *map(len, rows)])
    keys, weights = (np.array([edge[place] for row in rows for edge in row], dtype=np.int64) for place in (0, 1))
    numbers = unpacked(pack_edges(offsets, keys.astype(np.int32), weights, threshold))
    kept_rows = [[edge for edge in row if edge[1] >= threshold] for row in rows]
    total = sum(map(len, kept_rows))
    assert numbers[:n] == [len(row) for row in kept_rows]
    steps = iter(numbers[n : n + total])
    found = [list(np.cumsum([next(steps) for _ in row])) for row in kept_rows]
    assert found == [[edge[0] for edge in row] for row in kept_rows]
    assert numbers[n + total :] == [edge[1] for row in kept_rows for edge in row]


@QUICK
@given(st.lists(st.integers(0, (1 << 35) - 1)))
def test_varints_of_every_length(values):
    assert unpacked(deflate(varints(np.array(values, dtype=np.int64)))) == values


def test_varints_by_hand():
    assert varints(np.array([0, 127, 128, 300, 1 << 28])) == bytes([0, 127, 128, 1, 172, 2, 128, 128, 128, 128, 1])


def test_planes_by_hand():
    """1 is 3c00 and −2 is c000."""
    assert planes(np.array([1.0, -2.0], dtype="<f2")).hex() == "3cc0" + "0000"
    assert planes(np.array([1.0, -2.0], dtype="<f4")).hex() == "3fc0" + "8000" + "0000" + "0000"


@QUICK
@given(st.binary(max_size=37))
def test_text_of_base_85_is_the_bytes(data):
    """Of every length, in characters that begin no markup."""
    text = encode(data)
    assert decode(text) == data
    assert len(text) == len(data) // 4 * 5 + (len(data) % 4 + 1) * (len(data) % 4 > 0)
    assert not set(text) & set("<>&\"'\\`")


def test_text_of_base_85_by_hand():
    """2^32 − 1 is 82·85⁴ + 23·85³ + 54·85² + 12·85 + 0."""
    assert encode(bytes([255] * 4)) == "".join(ALPHABET[digit] for digit in (82, 23, 54, 12, 0))
    assert encode(bytes(4)) == "00000"


@QUICK
@given(n=st.integers(1, 23), causal=st.booleans(), window=st.none() | st.integers(1, 9), data=st.data())
def test_means_below_the_threshold_and_edges_are_the_mean_of_the_cell(n, causal, window, data):
    """What a page shows of a cell is what was pooled, whatever is kept one by one, and whichever rows are known."""
    cells = data.draw(st.integers(1, n))
    computed = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    i, j = np.indices((n, n))
    seen = ~((j > i) & causal) & (j > i - (window or n)) & computed[:, None]
    weights = np.random.default_rng(n).random((n, n)) * seen
    cell = ((np.arange(n) + 1) * cells - 1) // n
    member = (cell[:, None] == np.arange(cells)).astype(float)
    pairs = visible_pairs(n, cells, {"causal": causal, "window": window}, computed)
    np.testing.assert_array_equal(pairs, member.T @ seen @ member)
    pooled = np.where(pairs > 0, member.T @ weights @ member / np.maximum(pairs, 1), np.nan)
    rows, keys = np.nonzero(weights >= 0.4)
    rest = weak_means(pooled, pairs, rows, keys, weights[rows, keys], n)
    weak = seen & (weights < 0.4)
    left = member.T @ weak @ member
    want = np.where(left > 0, member.T @ (weights * weak) @ member / np.maximum(left, 1), 0)
    np.testing.assert_allclose(rest, want, atol=1e-9)
    np.testing.assert_allclose(values(codes(want, 0.4), 0.4), want, rtol=0.024, atol=4e-6)


@pytest.mark.parametrize(("most", "threshold"), [(9, 10), (8, 10), (7, 11), (5, 21), (4, 201), (0, 501)])
def test_the_threshold_of_the_page(tmp_path, monkeypatch, most, threshold):
    """Of edges of 0.01, twice 0.02, three times 0.2 and twice 0.5 in two layers the strongest that fit are kept."""
    edges = {"2/edge_weights": [0.01, 0.2, 0.5, 0.02], "7/edge_weights": [0.2, 0.2, 0.5, 0.02]}
    save_file({name: np.array(row, dtype=np.float16) for name, row in edges.items()}, tmp_path / "arrays.safetensors")
    monkeypatch.setattr(payload, "MAX_EDGES", most)
    record = {"layers": [{"index": 2}, {"index": 7}], "edge_threshold": 0.01}
    assert page_threshold(tmp_path, record) == threshold


def test_the_page_of_two_texts_has_the_means_of_what_is_below_its_threshold(tmp_path):
    """Of every layer, whichever of the texts its queries and keys are: no more rows and columns than it has."""
    source, target = (tokens(1, size, seed=size)[0].tolist() for size in (23, 10))
    seen = record(marian(), None, source, target)
    page = payload.pack(seen.save(tmp_path / "record"))
    blobs, threshold, shapes = dict(page.blobs), page.header["threshold"], set()
    for layer in seen.layers:
        packed = np.frombuffer(zlib.decompress(blobs[f"{layer['index']}/rest"], -15), np.uint8)
        rest = values(packed.reshape(-1, 23, 23).cumsum(1, dtype=np.uint8), threshold)  # a pair is a cell
        for head in range(layer["heads"]):
            weights = seen.region(layer["index"], head, slice(None), slice(None)).numpy()
            weak = np.where(weights < threshold, weights, 0)
            sure = abs(weights / threshold - 1) > 0.03  # on which side of it rounding puts the others is open
            rows, keys = weights.shape
            np.testing.assert_allclose(rest[head, :rows, :keys][sure], weak[sure], rtol=0.03, atol=1e-5)
            assert not rest[head, rows:].any()
            assert not rest[head, :, keys:].any()
            shapes.add((rows, keys))
    assert shapes == {(23, 23), (11, 11), (11, 23)}  # a start stands before the target


@pytest.mark.parametrize("rows", [None, 9, "two texts"])
def test_cells_of_the_page_are_means_over_the_pairs_whose_rows_are_known(tmp_path, monkeypatch, rows):
    """Of several pairs, at the ends of shorter texts and with rows left out, as the model's own weights have them."""
    monkeypatch.setattr(recording, "CELLS", 5)
    if rows == "two texts":
        seen, dense, *_ = made(marian, 11, 23)
    else:
        model, ids = causal("Llama"), tokens(1, 23)
        dense = dict(enumerate(each[0].double() for each in eager(model, input_ids=ids).attentions))
        seen = record(model, None, ids[0].tolist(), rows=rows)
    page = payload.pack(seen.save(tmp_path / "record"))
    blobs, threshold = dict(page.blobs), page.header["threshold"]
    member = torch.nn.functional.one_hot((torch.arange(1, 24) * 5 - 1) // 23).double()
    for layer in seen.layers:
        packed = np.frombuffer(zlib.decompress(blobs[f"{layer['index']}/rest"], -15), np.uint8)
        rest = values(packed.reshape(-1, 5, 5).cumsum(1, dtype=np.uint8), threshold)
        a = dense[layer["index"]]
        known = ~seen.arrays[f"{layer['index']}/entropy_rows"].isnan().all(0)[: a.shape[1]]
        assert int(known.sum()) == (rows if isinstance(rows, int) else a.shape[1])
        pairs = (torch.ones(a.shape[1:]).tril() if layer["causal"] else torch.ones(a.shape[1:])) * known[:, None]
        own, others = member[: a.shape[1]], member[: a.shape[2]]
        near = own.mT @ (abs(a / threshold - 1) < 0.03).double() @ others > 0  # rounding may put these on either side
        left = own.mT @ (pairs * (a < threshold)).double() @ others
        want = own.mT @ (pairs * torch.where(a < threshold, a, 0)) @ others / left.clamp(min=1)
        np.testing.assert_allclose(rest[~near.numpy()], want[~near].numpy(), rtol=0.06, atol=1e-5)
        assert 0 < int(near.sum()) < near.numel() / 2 or not near.any()
