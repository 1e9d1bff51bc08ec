"""Relevance of pixels and probes of pairs of patches: as their authors' code has them, and on cases told by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from regard.analysis.object_binding import PairProbe, object_binding, projected_out, share_right
from regard.analysis.salient_relevance import context_aware, salient_relevance

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "observe.json").read_text())


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def authors_network():
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))]
    model = nn.Sequential(*layers).double()
    parameters = [x for layer in VALUES["relevance"]["weights"] for x in layer]
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), parameters, strict=True):
            mine.copy_(tensor(theirs))
    return model


def test_relevance_is_that_of_the_authors():
    found = salient_relevance(authors_network(), tensor(VALUES["relevance"]["image"]))
    torch.testing.assert_close(found.logits, tensor(VALUES["relevance"]["logits"]).amax(1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.pixels, tensor(VALUES["relevance"]["relevance"]), rtol=1e-5, atol=1e-7)


def test_negative_products_get_their_share_with_a_minus():
    """(1, 2) by weights (−1, 1): the positive product is the second pixel's, the negative one the first's."""
    layer = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1))
    model = nn.Sequential(layer, nn.Flatten())
    image = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    found = {rule: salient_relevance(model, image, conv=rule).pixels.flatten().tolist() for rule in RULES}
    assert found == {"epsilon": [-1, 2], "positive": [0, 1], "alpha_beta": [-1, 2]}


RULES = ("epsilon", "positive", "alpha_beta")


@pytest.mark.parametrize("conv", ["epsilon", "positive"])
@pytest.mark.parametrize("linear", ["epsilon", "positive"])
def test_relevance_is_conserved_without_biases(conv, linear):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(45, 7, False)
    )
    found = salient_relevance(model, torch.rand(3, 1, 8, 9), torch.tensor([0, 3, 6]), conv, linear)
    torch.testing.assert_close(found.pixels.sum((1, 2, 3)), found.logits, rtol=1e-4, atol=1e-5)
    assert found.merge(found).table()[4]["logit"] == pytest.approx(float(found.logits[1]))


def test_what_is_unlike_its_surroundings_is_salient():
    maps = torch.zeros(1, 1, 19, 23)
    maps[0, 0, 5:8, 14:17] = 1
    found = context_aware(maps)[0]
    assert found.shape == (19, 23)
    assert divmod(int(found.argmax()), 23)[0] in range(3, 10)
    assert divmod(int(found.argmax()), 23)[1] in range(12, 19)
    assert found[15:, :8].max() < 0.5 * found.max()
    assert context_aware(torch.ones(1, 1, 9, 9)).abs().max() == 0


def test_other_layers_and_rules_are_named():
    with pytest.raises(TypeError, match=r"^model: got a GELU, want sequences of Sequential"):
        salient_relevance(nn.Sequential(nn.GELU()), torch.zeros(1, 1, 2, 2))
    with pytest.raises(LookupError, match=r"^conv: got 'epsilom', want one of .* \(did you mean 'epsilon'\?\)"):
        salient_relevance(nn.Sequential(), torch.zeros(1, 1, 2, 2), conv="epsilom")


@pytest.mark.parametrize("form", ["linear", "diagonal", "quadratic"])
def test_probes_are_those_of_the_authors(form):
    values = VALUES["binding"]
    probe, x = PairProbe(5, form).double(), tensor(values["x"])[None]
    with torch.no_grad():
        probe.map.weight.copy_(tensor(values[form]["weight"]))
        probe.map.bias.copy_(tensor(values[form]["bias"]))
    pairs = probe(x)
    torch.testing.assert_close(pairs[0], tensor(values[form]["pairs"]), rtol=1e-6, atol=1e-8)
    assert share_right(pairs > 0, torch.tensor(values["objects"])) == pytest.approx(values[form]["right"])


def bound(images, seed):
    """States whose first four coordinates tell the object by signs, and the last three its class."""
    draw = torch.Generator().manual_seed(seed)
    objects = torch.randint(3, (images, 11), generator=draw)
    codes = torch.linalg.qr(torch.randn(images, 4, 4, generator=draw)).Q[:, :3]
    classes = torch.randint(2, (images, 3), generator=draw).gather(1, objects)
    states = torch.cat([2 * codes.gather(1, objects[..., None].expand(-1, -1, 4)), torch.eye(3)[classes]], 2)
    return states, objects, classes


def test_a_planted_binding_is_told_by_products_alone_and_lies_where_it_was_put():
    fitted, asked = bound(200, 0), bound(60, 1)
    found = object_binding([(fitted[0], asked[0])], (fitted[1], asked[1]), (fitted[2], asked[2]), rate=3e-2)
    shares = {row["probe"]: row["right"] for row in found.table()}
    assert shares["quadratic"] > 0.98
    assert shares["diagonal"] > 0.98
    assert max(shares["linear"], shares["class"]) < 0.85
    assert found.best("quadratic") == (0, pytest.approx(shares["quadratic"]))


def test_directions_are_those_of_the_largest_eigenvalues_and_what_lies_in_them_is_taken_out():
    probe = PairProbe(3, "quadratic")
    with torch.no_grad():
        probe.map.weight.copy_(torch.tensor([[1.0, 6, 0], [0, 1, 0], [0, 0, -3]]))  # symmetric part: 4, −2 and −3
    directions = probe.directions(2)
    want = torch.tensor([[2**-0.5, 2**-0.5, 0], [0, 0, 1.0]])
    torch.testing.assert_close(directions.abs(), want, atol=1e-6, rtol=0)
    x = torch.randn(2, 7, 3)
    left = projected_out(x, directions)
    torch.testing.assert_close(left @ directions.T, (x.mean(1) @ directions.T)[:, None].expand(-1, 7, -1))
    other = torch.tensor([2**-0.5, -(2**-0.5), 0])
    torch.testing.assert_close(left @ other, x @ other)


def test_merged_results_are_those_of_all_pairs():
    fitted, asked = bound(31, 2), bound(20, 3)
    parts = [
        object_binding([(fitted[0], asked[0][rows])], (fitted[1], asked[1][rows]), forms=["diagonal"], steps=5)
        for rows in (slice(0, 20), slice(0, 7), slice(7, 20))
    ]
    merged = parts[1].merge(parts[2])
    torch.testing.assert_close(merged.right, parts[0].right, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"^other: got "):
        parts[0].merge(object_binding([(fitted[0], asked[0])], (fitted[1], asked[1]), forms=["linear"], steps=1))


def test_other_forms_and_directions_are_named():
    with pytest.raises(LookupError, match=r"^form: got 'quadratc', want one of .* \(did you mean 'quadratic'\?\)"):
        PairProbe(3, "quadratc")  # pyright: ignore
    with pytest.raises(ValueError, match=r"^count: got 2 of a linear probe"):
        PairProbe(3, "linear").directions(2)
