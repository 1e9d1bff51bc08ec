"""Sparge: what it takes, rounds and computes, as the authors' kernels have it (tests/reference/sparge.py)."""

import json
from pathlib import Path

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.sparge import Sparge, centred, codes
from regard.patterns.choice import Rows

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "sparge.json").read_text())
TOKENS, SHORT, EVERY, COLUMNS = 512, 450, 23, 7
GIVEN = {
    "share": {"share": 0.6, "alike": 0.3},
    "top": {"top": 0.4, "alike": -0.1},
    "sink": {"share": 0.3, "alike": -1.0, "sink": True},
    "heads": {"share": (0.3, 0.8), "alike": (0.4, -1.0)},
}


def wave(shape, phase):
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(count * 0.7310585786 + phase).reshape(*shape)


def drawn() -> list[torch.Tensor]:
    """As tests/reference/sparge.py has it."""
    q, k, v = (2 * wave((1, 2, TOKENS, 64), phase).float() for phase in (0.1, 0.2, 0.3))
    slow = torch.sin(torch.arange(TOKENS) / 60)[:, None] * torch.linspace(-3, 3, 64)
    return [x.half().float() for x in (q + slow, k + slow, v)]


@pytest.mark.parametrize("name", VALUES["maps"])
def test_takes_the_blocks_that_the_authors_take(name):
    q, k, _ = drawn()
    which, way, size, block = name.replace(" × ", ", ").split(", ")
    found = Sparge(int(size), int(block), **GIVEN[which]).choice(q, k, way == "causal").mask
    wanted = torch.tensor(VALUES["maps"][name]).bool()
    assert torch.equal(found, wanted)
    assert bool(wanted.all()) == (name == "share, all, 64 × 128")


def test_codes_of_the_authors():
    q, k, _ = (x[:, :, :SHORT] for x in drawn())
    for name, x, size in (("q", q, 128), ("k", centred(k), 64)):
        whole, scale = codes(x, size)
        torch.testing.assert_close(scale.flatten(2), torch.tensor(VALUES["codes"][f"{name}_scale"]))
        got = whole.flatten(2, 3)[:, :, :SHORT][:, :, ::EVERY, ::COLUMNS]
        assert torch.equal(got, torch.tensor(VALUES["codes"][name]).float())
        assert whole.abs().max() == 127


@pytest.mark.parametrize("way", ["all", "causal"])
def test_outputs_of_the_authors(way):
    """They sum in half precision: to that."""
    q, k, v = drawn()
    layout = Layout(causal=way == "causal")
    wanted = torch.tensor(VALUES["outputs"][way])
    apart = []
    for int8 in (True, False):
        out = Sparge(share=0.6, alike=0.3, int8=int8)(q, k, v, layout)[:, :, ::EVERY, ::COLUMNS]
        apart.append((out - wanted).abs().max())
    assert apart[0] < 2e-3 < apart[1]


def test_codes_by_hand():
    """Scale 1: 127 is the largest; a half goes away from zero, a mean of nothing is taken off."""
    x = torch.tensor([127 * (1 - 1e-7), 0.5, -0.5, -1.49, 126.4, 0]).view(1, 1, 3, 2).double()
    whole, scale = codes(x, 5)
    torch.testing.assert_close(scale.flatten(), torch.ones(1).double(), atol=1e-6, rtol=0)
    assert whole.flatten().tolist() == [127, 1, -1, -1, 126, 0, 0, 0, 0, 0]


def test_a_prompt_then_all_keys():
    q, k, v = (x.double() for x in torch.randn(3, 1, 2, 41, 5, generator=torch.Generator().manual_seed(0)))
    mechanism = Sparge(8, 4, 0.3, -1.0)
    prompt, rest = slice(0, 37), slice(37, None)
    out, state = mechanism.extend(q[:, :, prompt], k[:, :, prompt], v[:, :, prompt], mechanism.start(1))
    torch.testing.assert_close(out, mechanism(q[:, :, prompt], k[:, :, prompt], v[:, :, prompt], Layout(causal=True)))
    assert (out - Softmax()(q, k, v, Layout(causal=True))[:, :, prompt]).abs().max() > 1e-3
    out, _ = mechanism.extend(q[:, :, rest], k[:, :, rest], v[:, :, rest], state)
    torch.testing.assert_close(out, Softmax()(q, k, v, Layout(causal=True))[:, :, rest])


def test_a_causal_row_chooses_up_to_its_own_blocks():
    """Rows of 4 over blocks of 2, two of all five a row: the second row may take its own two, never the last block."""
    q, k = torch.ones(1, 1, 9, 1), torch.tensor([0.0, 0, 1, 1, 2, 2, 3, 3, 9]).view(1, 1, 9, 1)
    router = Sparge(4, 2, alike=-1.0, top=0.4).router
    found = router(q, k, Rows.last(9, 9, 2, 4, True)).mask[0, 0].int().tolist()
    assert found == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("given", [{"share": 0}, {"share": (0.5, 1.5)}, {"top": 0.0}], ids=str)
def test_refusals(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}: got"):
        Sparge(**given)


def test_as_many_shares_as_heads():
    q, k, v = torch.randn(3, 1, 3, 9, 4)
    with pytest.raises(ValueError, match="share: got 2 numbers"):
        Sparge(share=(0.5, 0.6))(q, k, v)
