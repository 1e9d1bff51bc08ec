"""Pyramid sparse attention: ranks, levels and outputs as the authors' kernels have them."""

import json
from pathlib import Path

import pytest
import torch

from reference.waves import alike_in_places
from regard.mechanisms.sparse.pyramid import PyramidSparse
from regard.patterns.choice import Rows
from regard.routers.levels import Levels

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "pyramid.json").read_text())


class EveryFourth(Levels):
    """Samples every fourth token, as the reference does."""

    def places(self, size, count, offset):
        return torch.arange(0, size, size // count)


def test_importance_and_levels_of_the_authors_kernels():
    q, k, _ = alike_in_places(384)
    router, want = EveryFourth(16, 16), VALUES["importance"]
    rows = Rows.last(384, 384, 16, 16, False)
    paid = router.scores(q, router.summary(k), rows)
    torch.testing.assert_close(paid[:, :, ::6], torch.tensor(want["paid"]), atol=1e-5, rtol=1e-4)
    levels, theirs = router.levels(q, k, rows)[:, :, ::6], torch.tensor(want["levels"])
    for level in (0, 1, 2, 4, 8):  # of blocks that are worth the same the kernels take any
        got, wanted = ((paid[:, :, ::6] * (x == level)).sum(-1) for x in (levels, theirs))
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
        assert torch.equal((levels == level).sum(-1), (theirs == level).sum(-1))


def test_levels_that_the_likeness_of_keys_allows():
    k = alike_in_places(384)[1]
    router = Levels(16, 16, alike={2: 0.7, 4: 0.2, 8: 0.98})
    found = router.coarsest(k)
    assert torch.equal(found.long(), torch.tensor(VALUES["importance"]["alike"]))
    assert len(found.unique()) > 1


@pytest.mark.parametrize("way", ["forward", "weights"])
def test_outputs_of_the_authors_kernel(way, monkeypatch):
    q, k, v = alike_in_places(640, 64)
    levels = torch.tensor(VALUES["attention"]["levels"]).long()
    mechanism = PyramidSparse(128, 128)
    monkeypatch.setattr(PyramidSparse, "levels", lambda *_: levels)
    out = mechanism(q, k, v) if way == "forward" else mechanism.weights(q, k) @ v
    torch.testing.assert_close(out[:, :, ::97], torch.tensor(VALUES["attention"]["out"]), atol=2e-5, rtol=2e-4)


def test_quotas_by_hand():
    """Of 21 blocks: 1 of level 1, of the next 2.1 two of level 2, to 5.25 four of level 4, to 10.5 eight of level 8."""
    assert Levels().ends(21) == {1: (0, 1), 2: (1, 3), 4: (3, 7), 8: (7, 15)}
    assert Levels().ends(1) == {1: (0, 1), 2: (1, 1), 4: (1, 1), 8: (1, 1)}
    assert Levels(quotas={1: 0.5, 4: 1.0}).ends(8) == {1: (0, 4), 4: (4, 8)}


def test_refusals():
    for given, said in (({"quotas": {1: 0.5, 2: 0.2}}, "quotas"), ({"quotas": {}}, "quotas"), ({"block": 12}, "block")):
        with pytest.raises(ValueError, match=f"{said}: got"):
            PyramidSparse(**given)
