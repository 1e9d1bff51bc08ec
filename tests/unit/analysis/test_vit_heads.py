"""Heads of image classifiers: profiles by hand, planted kinds of heads, and removals against weights set to zero."""

import copy

import pytest
import torch

from regard.analysis.head_divergence import Divergences, divergences
from regard.analysis.vit_heads import HeadKnockouts, Images, hop_profile, image_maps
from regard.claims.digit_heads import classifier
from regard.laws import examine, examples_of

PIXELS = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 1, 4, 1, 5])


@pytest.fixture(scope="module")
def model():
    return classifier(0).double().eval()


def test_the_known_values():
    (sample,) = examples_of(HeadKnockouts)
    assert examine(sample, "known", kind="analysis").verdict == "holds"


def test_profiles_of_planted_heads_sum_to_one_and_are_grouped():
    """Heads that look near, along the row, and everywhere, three of each with noise."""
    side, draw = 5, torch.Generator().manual_seed(1)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = (places[:, None] - places).abs()
    kinds = [(apart.amax(2) <= 1).double(), (apart[..., 0] == 0).double(), torch.ones(25, 25, dtype=torch.float64)]
    maps = torch.stack([kind for kind in kinds for _ in range(3)])
    maps = maps + 0.1 * torch.rand(maps.shape, generator=draw, dtype=torch.float64)
    maps = maps / maps.sum(2, keepdim=True)
    profile = hop_profile(maps, (side, side), 0)
    torch.testing.assert_close(profile.sum(1), torch.ones(9, dtype=torch.float64))
    assert float(profile[:3, :2].sum(1).min()) > 0.7
    heads = tuple((0, head) for head in range(9))
    groups = Divergences(heads, divergences(maps), 25).clusters(3)
    assert [len({groups[0, h] for h in range(at, at + 3)}) for at in (0, 3, 6)] == [1, 1, 1]
    assert len(set(groups.values())) == 3


def test_maps_are_those_that_the_model_forms(model):
    found = image_maps(model, PIXELS.double())
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    want = eager(pixel_values=PIXELS.double(), output_attentions=True).attentions
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype))


def test_removals_are_those_of_a_head_without_output_weights(model):
    found = HeadKnockouts(2).run(model, [Images(PIXELS.double(), LABELS)])
    without = copy.deepcopy(model)
    named = dict(without.named_parameters())
    (name,) = [n for n in named if ".1." in n and n.endswith("attention.o_proj.weight")] or [
        n for n in named if ".1." in n and n.endswith("attention.output.dense.weight")
    ]
    with torch.no_grad():
        named[name][:, 16:24] = 0
        whole = model(pixel_values=PIXELS.double()).logits.softmax(1)
        other = without(pixel_values=PIXELS.double()).logits.softmax(1)
    at, index = torch.arange(5), found.heads.index((1, 2))
    torch.testing.assert_close(found.probability[index], (whole - other)[at, LABELS])
    torch.testing.assert_close(found.loss[index], (whole.log() - other.log())[at, LABELS])
    torch.testing.assert_close(found.divergence[index], (whole * (whole / other).log()).sum(1))
    assert found.agreement("loss", "loss") == pytest.approx(1)
    assert found.ranked("divergence")[0] == found.heads[int(found.divergence.mean(1).argmax())]
    assert len(found.table()) == 8


def test_parts_merge_to_the_whole(model):
    images = Images(PIXELS.double(), LABELS)
    analysis = HeadKnockouts()
    parts = [analysis.run(model, [Images(images.pixels[of], LABELS[of])]) for of in (slice(2), slice(2, 5))]
    torch.testing.assert_close(parts[0].merge(parts[1]).loss, analysis.run(model, [images]).loss)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: HeadKnockouts(0), "size"),
        (lambda model: HeadKnockouts().run(model, []), "no images"),
        (lambda model: HeadKnockouts().run(model, [Images(PIXELS.double(), LABELS)]).ranked("x"), "measure"),
        (lambda model: hop_profile(torch.eye(5)[None], (2, 3), 0), "grid"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, said, model):
    with pytest.raises(ValueError, match=said):
        make(model)
