"""The tables of gates and necks on drawn scenes: every network of theirs, and their figures."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from regard.compare import scene_tables
from regard.compare.scene_networks import STRIDES, SceneClassifier, SceneDetector, assigned, boxed, detection_loss
from regard.compare.scene_tables import GATES, NECKS, GateCell, NeckCell
from regard.tasks.scenes import SHAPES, Scenes


@pytest.mark.parametrize("cell", [*(GateCell(text) for text in GATES), *(NeckCell(text) for text in NECKS)], ids=str)
def test_every_network_is_made_and_learns_in_all_its_parameters(cell):
    model = cell.network().train()
    loss = cell.loss(model, Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite()
    lost = [name for name, each in model.named_parameters() if each.grad is None]
    assert not lost


def test_networks_differ_in_gate_or_neck_alone():
    plain, gated, again = (SceneClassifier(text, seed=3).state_dict() for text in ("none", "se", "se"))
    assert all(torch.equal(gated[name], again[name]) for name in gated)
    assert set(plain) < set(gated)
    one, other = (SceneDetector(text, seed=3).state_dict() for text in ("none", "fpn"))
    shared = [name for name in one if not name.startswith("neck.")]
    assert all(torch.equal(one[name], other[name]) for name in shared)
    counts = [sum(p.numel() for p in SceneDetector(text).parameters()) for text in ("none", "fpn")]
    assert counts[0] == counts[1]


def test_the_control_is_weighed_by_another_image():
    gate = GateCell("se of another image").network().blocks[0].gate.eval()
    x = torch.randn(3, 16, 5, 7)
    factors = gate.own.scale(x)
    torch.testing.assert_close(gate(x), x * factors[[2, 0, 1]])


def test_cells_that_stand_for_a_box():
    """A box of 18 pixels belongs to the middle level, of which the four cells whose middles it holds take it."""
    kinds, boxes = torch.tensor([[3, -1]]), torch.tensor([[[18.0, 26, 36, 44], [0, 0, 8, 8]]])
    wanted, places = assigned(kinds, boxes, 64)
    taken = wanted[0].ne(-1).nonzero().flatten() - (64 // STRIDES[0]) ** 2
    rows, columns = taken // 8, taken % 8  # cells of eight pixels, with middles at 4, 12, …
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(3, 2), (3, 3), (4, 2), (4, 3)]
    assert (places[0][wanted[0] == 3] == boxes[0, 0]).all()


def test_perfect_scores_and_boxes_have_no_loss():
    _, kinds, boxes = Scenes(64).many(4, Generator().manual_seed(1))
    wanted, places = assigned(kinds, boxes, 64)
    scores = torch.full((*wanted.shape, len(SHAPES)), -20.0)
    scores[wanted >= 0, wanted[wanted >= 0]] = 20.0
    middles = -boxed(torch.zeros(4, wanted.shape[1], 4), 64)[..., :2].neg()
    sides = torch.cat([middles - places[..., :2], places[..., 2:] - middles], -1)
    assert detection_loss((scores, sides), kinds, boxes, 64) < 1e-4
    assert detection_loss((-scores, sides), kinds, boxes, 64) > 1


def test_rows_make_the_table():
    """Means with Student's intervals, and differences seed by seed."""
    rows = [
        {"kind": GateCell.kind, "text": text, "seed": seed, "parameters": 1234, "accuracy": value}
        for text, values in {"none": (0.50, 0.54), "se": (0.60, 0.62)}.items()
        for seed, value in enumerate(values)
    ]
    head, _, none, se, *_ = scene_tables.markdown(rows, "gates").splitlines()
    assert head == "| gate | parameters | accuracy | above `se` | seeds |"
    assert none == "| `none` | 1,234 | 52.0 ± 25.4 | -9.0 ± 12.7 | 2 |"
    assert se == "| `se` | 1,234 | 61.0 ± 12.7 |  | 2 |"
    with pytest.raises(ValueError, match="none of the suite"):
        scene_tables.markdown(rows, "necks")


def test_a_run_that_was_stopped_goes_on(tmp_path):
    from typer.testing import CliRunner

    from regard.cli import app

    words = ["compare", "--suite", "gates", "--preset", "smoke", "--seeds", "1", "-o", str(tmp_path / "kept")]
    runner = CliRunner()
    first = runner.invoke(app, [*words[:3], "none", *words[3:]])
    assert first.exit_code == 0, first.output
    second = runner.invoke(app, [*words[:3], "none", "se", *words[3:]])
    assert second.exit_code == 0, second.output
    assert "1 of 2 were there already" in second.output
    assert "| `se` |" in second.output
