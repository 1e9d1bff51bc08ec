"""`regard serve`: exact regions, and clear refusals."""

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import regard
from regard.networks import LM, Config
from regard.records.record import record as look
from regard.web import server
from regard.web.server import app
from unit.hosts.test_watch import Dense
from web.synthetic import write_exact_record, write_record

N = 43


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client of a served record, and the weights that the record is about."""
    folder = tmp_path_factory.mktemp("served") / "record"
    weights = write_exact_record(folder, N)
    return TestClient(app(folder), base_url="http://127.0.0.1"), weights


def numbers(answer, height: int, width: int) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<f4").reshape(height, width)


def ask(client, **changed):
    """A region, the whole first map unless told otherwise."""
    return client.get(
        "/api/region", params={"layer": 0, "head": 0, "row0": 0, "row1": N, "key0": 0, "key1": N} | changed
    )


def test_pairs_are_exact_and_hidden_ones_are_not_numbers(served):
    client, weights = served
    got = numbers(ask(client, head=2, row0=11, row1=29, key0=5, key1=31), 18, 26)
    seen = np.tri(N, dtype=bool)[11:29, 5:31]
    np.testing.assert_allclose(got[seen], weights[2, 11:29, 5:31][seen], atol=1e-6)
    assert np.isnan(got[~seen]).all()


def test_cells_are_means_over_the_pairs_that_may_be_seen(served):
    client, weights = served
    got = numbers(ask(client, step=8), 6, 6)
    for y in range(6):
        for x in range(6):
            rows, keys = slice(8 * y, min(8 * y + 8, N)), slice(8 * x, min(8 * x + 8, N))
            seen = np.tri(N, dtype=bool)[rows, keys]
            if seen.any():
                assert got[y, x] == pytest.approx(weights[0, rows, keys][seen].mean(), abs=1e-6)
            else:
                assert np.isnan(got[y, x])


@pytest.mark.parametrize("step", [1, 3, 8])
def test_bands_of_rows_join_to_the_region(served, monkeypatch, step):
    """Regions whose rows are not formed at once, from a row that begins no band, to one that ends none."""
    client, weights = served
    region = {"head": 1, "row0": 3, "row1": 41, "key0": 2, "key1": 40}
    size = -(-38 // step)
    whole, bands = numbers(ask(client, step=step, **region), size, size), []
    monkeypatch.setattr(server, "BAND", 38 * 17)
    formed = server.pooled
    monkeypatch.setattr(server, "pooled", lambda *given: bands.append(given[3]) or formed(*given))
    np.testing.assert_allclose(numbers(ask(client, step=step, **region), size, size), whole, atol=1e-6)
    assert len(bands) == 3
    assert bands[0][0] == 3
    assert bands[-1][1] == 41
    if step == 1:
        seen = np.tri(N, dtype=bool)[3:41, 2:40]
        np.testing.assert_allclose(whole[seen], weights[1, 3:41, 2:40][seen], atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"head": 3}, "head: got 3, want 0 to 2"),
        ({"layer": 7}, "layer: got 7, want one of [0]"),
        ({"row1": N + 1}, f"row0, row1: got 0, {N + 1}, want 0 <= row0 < row1 <= {N}"),
        ({"key0": 9, "key1": 9}, "key0, key1: got 9, 9"),
        ({"step": 0}, "step: got 0, want at least 1"),
    ],
)
def test_bad_regions_are_refused_in_words(served, changed, said):
    answer = ask(served[0], **changed)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_a_score_is_the_sum_of_its_products(served):
    client, weights = served
    found = client.get("/api/pair", params={"layer": 0, "head": 1, "row": 30, "key": 4}).json()
    assert len(found["products"]) == 5
    assert sum(found["products"]) == pytest.approx(found["score"], abs=1e-5)
    assert found["weight"] == pytest.approx(weights[1, 30, 4], abs=1e-6)
    answer = client.get("/api/pair", params={"layer": 0, "head": 3, "row": 30, "key": 4})
    assert answer.status_code == 422
    assert "head: got 3, want 0 to 2" in answer.json()["detail"]


def test_a_region_without_numbers_is_refused(served):
    assert served[0].get("/api/region", params={"layer": "x"}).status_code == 422


def test_other_host_names_are_refused(served):
    assert served[0].get("/", headers={"host": "evil.example"}).status_code == 421
    assert served[0].get("/", headers={"host": "localhost:8080"}).status_code == 200


def test_the_page_may_ask_its_server(served):
    page = served[0].get("/").text
    assert 'name="regard-served" content="yes"' in page
    assert "connect-src 'self'" in page


def test_a_record_without_tensors_says_so(tmp_path):
    client = TestClient(app(write_record(tmp_path / "record", 31, layers=1, heads=2)), base_url="http://127.0.0.1")
    answer = client.get("/api/region", params={"layer": 0, "head": 0, "row0": 0, "row1": 3, "key0": 0, "key1": 3})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "record: got no kept tensors, want a record made with keep=True"


def test_a_folder_that_is_no_record_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"which has no record\.json"):
        app(tmp_path)


def test_regions_of_a_model_of_ours_are_exact(tmp_path):
    lm = LM(Config(vocabulary=31, width=16, heads=2, layers="window(size=9), gated_deltanet"), seed=0)
    ids = torch.randint(31, (N,), generator=torch.Generator().manual_seed(0))
    folder = look(lm, None, ids).save(tmp_path / "record")
    client = TestClient(app(folder), base_url="http://127.0.0.1")
    with regard.watch(lm, [dense := Dense(N)], shares=True):
        lm(ids[None])
    seen, near = np.tri(N, dtype=bool), np.tri(N, k=-9, dtype=bool)
    for layer, hidden in ((0, ~seen | near), (1, ~seen)):
        got = numbers(ask(client, layer=layer, head=1), N, N)
        np.testing.assert_allclose(got[~hidden], dense.maps[layer][0, 1].numpy()[~hidden], atol=1e-6)
        assert np.isnan(got[hidden]).all()
