"""Subjects that read references moved to where they stand: by hand, and by the authors' code."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from regard.networks.reposition import Repositioned, apart, boxes, sources

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "subjects.json").read_text())
NAMES = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def mask(rows):
    return torch.tensor([[cell == "x" for cell in row] for row in rows.split()])


def test_boxes_and_cells_by_hand():
    """Two rows of three columns come to four rows of two: rows 1 1 2 2, columns 1 and 2, whose third is not asked."""
    inside, places = mask("..... .xx.. .x.x. ..... ....."), mask("...xx ....x ...xx ...x. .....")
    assert [x.tolist() for x in boxes(inside)] == [[1, 2], [1, 3]]
    index, told = sources(inside, places)
    box = [index.view(5, 5)[row, 3:].tolist() for row in range(4)]
    assert box == [[6, 7], [6, 7], [11, 12], [11, 12]]
    assert torch.equal(told.view(5, 5), mask("...xx ...xx ...x. ...x. ....."))


def test_a_subject_that_is_in_one_image_only_is_told_nothing():
    some, none = mask(".x. .x."), mask("... ...")
    for inside, places in ((some, none), (none, some), (none, none)):
        assert not sources(inside, places)[1].any()
    assert sources(some, some)[0][1] == 1


def test_who_is_apart_by_hand():
    """Cells of the first and second subject, of the background, and of both, which is apart from all but background."""
    places = torch.tensor([[[True, False, False, True], [False, True, False, True]]])
    want = [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]]
    assert apart(places)[0].int().tolist() == want


@pytest.mark.parametrize("name", VALUES)
def test_attention_is_that_of_the_authors(name):
    told = {key: torch.tensor(x, dtype=torch.float64) for key, x in VALUES[name].items() if key != "weights"}
    net = Repositioned((4, 5), 6, 2, 1, 0, moved=name != "concatenated").double()
    net.blocks[0].norms[0] = nn.Identity()
    net.blocks[0].attention.projection.load_state_dict(
        {f"{own}.weight": torch.tensor(VALUES[name]["weights"][f"{name_}.weight"]) for own, name_ in NAMES.items()}
    )
    masks = [told[key].bool().expand(2, -1, -1, -1) for key in ("inside", "places")]
    target = told["x"][:, -1]
    out = net(target, told["x"][:, :-1], *masks) - target
    torch.testing.assert_close(out, told["out"], rtol=1e-5, atol=1e-5)


def test_weights_say_who_reads_whom():
    """Between subjects, and from the background to references, exactly nothing; to one's own reference something."""
    net, (inputs,) = Repositioned((4, 5), 8, 2, 2, 12, near=True), [Repositioned.examples()[0].given["inputs"](1, 0)]
    weights = list(net.intermediates(*inputs).values())
    places = inputs[3].flatten(2)[0]
    targets = [found for found in weights if found.shape[-1] == 3 * 20]
    assert len(targets) == 2
    for found in targets:
        to = found[0].unflatten(-1, (3, 20)).sum(-1)  # (heads, n, reference or target)
        for subject in range(2):
            assert (to[:, ~places[subject], subject] == 0).all()
            assert (to[:, places[subject], subject] > 0).all()
        between = places[0][:, None] & places[1]
        assert (found[0, :, :, 40:][:, between | between.T] == 0).all()


def test_blocks_before_the_first_read_no_references():
    x, references, *masks = Repositioned.examples()[0].given["inputs"](2, 0)
    for first, reads in ((2, False), (1, True)):
        net = Repositioned((4, 5), 8, 2, 2, 12, first=first)
        assert (not torch.equal(net(x, references, *masks), net(x, references + 1, *masks))) == reads


def test_without_subjects_it_is_plain_blocks():
    torch.manual_seed(0)
    x = torch.randn(2, 20, 8)
    net, none = Repositioned((4, 5), 8, 2, 2, 12), torch.zeros(2, 0, 4, 5, dtype=torch.bool)
    want = x
    for block in net.blocks:
        want = block(want)
    torch.testing.assert_close(net(x, x[:, None, :, :][:, :0], none, none), want)


def test_what_is_refused():
    with pytest.raises(ValueError, match="heads"):
        Repositioned((4, 5), 8, 3)
    with pytest.raises(ValueError, match="first"):
        Repositioned((4, 5), 8, 2, 2, first=3)
    net, (x, references, inside, places) = Repositioned((4, 5), 8, 2), Repositioned.examples()[0].given["inputs"](2, 0)
    for name, given in (
        ("x", (x[:, 1:], references, inside, places)),
        ("references", (x, references[:1], inside, places)),
        ("inside", (x, references, inside[:, :1], places)),
        ("places", (x, references, inside, places[..., 1:])),
    ):
        with pytest.raises(ValueError, match=name):
            net(*given)
