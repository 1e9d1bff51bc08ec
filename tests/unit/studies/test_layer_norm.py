"""LayerNorm in two parts: their product is LayerNorm, scaling makes keys selectable."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

from regard.studies.layer_norm_expressivity import LayerNormParts, Majority, majorities, unselectable


def test_both_parts_are_layer_norm():
    """Projection and scaling, one after the other, equal LayerNorm to 1e-6; each alone does what it says."""
    x = 3 * torch.randn(7, 11, 13) + 2
    torch.testing.assert_close(LayerNormParts()(x), F.layer_norm(x, (13,)), atol=1e-6, rtol=0)
    flat, scaled = LayerNormParts(scaling=False)(x), LayerNormParts(projection=False)(x)
    torch.testing.assert_close(flat.sum(-1), torch.zeros(7, 11), atol=1e-4, rtol=0)
    torch.testing.assert_close(x - flat, x.mean(-1, keepdim=True).expand_as(x))
    torch.testing.assert_close(scaled.norm(dim=-1), torch.full((7, 11), 13**0.5))
    torch.testing.assert_close(F.normalize(scaled, dim=-1), F.normalize(x, dim=-1))


def in_hull(keys):
    """By linear programming: whether each key is a convex combination of the others."""
    found = []
    for i in range(len(keys)):
        others = np.delete(keys.numpy(), i, 0).T
        equal = np.vstack([others, np.ones(others.shape[1])])
        result = linprog(np.zeros(others.shape[1]), A_eq=equal, b_eq=np.append(keys[i].numpy(), 1), bounds=(0, None))
        found.append(result.status == 0)
    return torch.tensor(found)


def test_scaling_leaves_no_key_unselectable():
    """200 random keys in 8 dimensions: many lie in the hull of others, as linear programs agree; none once scaled."""
    keys = torch.randn(200, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = unselectable(keys)
    assert torch.equal(hidden, in_hull(keys))
    flat = unselectable(LayerNormParts(scaling=False)(keys))
    assert hidden.any()
    assert flat.any()
    for projection in (False, True):
        assert not unselectable(LayerNormParts(projection, eps=0)(keys)).any()


def test_hulls_by_hand():
    """The centre of a square and a corner's copy are unselectable, the corners are not; one key is refused."""
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [0.2, 0.1]])
    assert unselectable(square).tolist() == [False] * 4 + [True]
    assert unselectable(square[[0, 1, 2, 0]]).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="keys: got shape"):
        unselectable(square[:1])


def test_majorities_are_ahead_of_all_other_classes():
    classes, most = majorities(53, torch.Generator().manual_seed(0), length=17, classes=5, least=4)
    assert classes.shape == (53, 17)
    counts = F.one_hot(classes, 5).sum(1)
    others = counts.scatter(1, most[:, None], -1)
    assert (counts.gather(1, most[:, None])[:, 0] - others.amax(1) >= 4).all()
    assert len(most.unique()) == 5


def test_chances_of_classes_are_as_uneven_as_squares_of_exponential_draws():
    """Of two such squares one is above nine tenths of both where one root is above three times the other, which is so
    for one half of all pairs; of the draws themselves, nine times, for a fifth."""
    classes, most = majorities(997, torch.Generator().manual_seed(0), length=499, classes=2, least=1)
    share = (classes == most[:, None]).double().mean(1)
    assert (share > 0.9).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (share > 0.75).double().mean().item() == pytest.approx(2 / (1 + 3**0.5), abs=0.05)


def test_a_query_along_one_counts_where_keys_are_projected():
    """Q and K that make 1 of every query: all keys weigh alike, the angle is zero, and V is averaged."""
    model = Majority(classes=5, dim=4, seed=0)
    with torch.no_grad():
        model.maps.weight[:4] = torch.ones(4)[:, None] * torch.tensor([1.0, -1.0, 2.0, 0.5])
        model.maps.weight[4:8] = torch.eye(4)
        classes = torch.tensor([[0, 1, 1, 3, 1, 4, 0]])
        torch.testing.assert_close(model.angle(classes), torch.zeros(1, 7), atol=0.1, rtol=0)
        x = model.embedding(classes)
        values = model.norm(x) @ model.maps.weight[8:].T
        mixed = x + model.out(values.mean(1, keepdim=True))
        want = (mixed + model.network(model.after(mixed))) @ model.embedding.weight.T
    torch.testing.assert_close(model(classes), want)
