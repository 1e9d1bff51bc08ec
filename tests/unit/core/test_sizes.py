"""One `Sizes` for what is built of width and heads, and the five arguments that it was in 0.1."""

import inspect
import warnings
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

import regard
from regard.core.sizes import Sizes, takes_sizes
from regard.networks.lm import LM, Config
from regard.networks.vision.boundary_attention import BoundaryAttention
from regard.projections.base import Grouped
from regard.projections.gates import Gates
from regard.projections.latent import Latent
from regard.projections.nexus import Nexus
from regard.projections.selective import MultiValue

FIVE = {"width": 13, "heads": 4, "kv_heads": 2, "head_dim": 5, "value_dim": 7}


def same(one, other):
    """Whether two modules have the same parameters, bit for bit."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", FIVE)
def test_a_size_below_one_is_named(name):
    with pytest.raises(ValueError, match=f"{name}: got 0, want at least 1"):
        Sizes(**FIVE | {name: 0})


def test_heads_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="kv_heads: got 3, want a divisor of the 4 heads"):
        Sizes(**FIVE | {"kv_heads": 3})
    with pytest.raises(ValueError, match="heads: got 5, want a divisor of the width 12"):
        Sizes.even(12, 5)
    with pytest.raises(ValueError, match="heads: got 0"):
        Sizes.even(12, 0)
    assert Sizes.even(12, 3) == Sizes(12, 3, 3, 4, 4)


def test_they_are_one_value_that_does_not_change():
    sizes = Sizes(**FIVE)
    with pytest.raises(FrozenInstanceError):
        sizes.heads = 2
    with pytest.raises(AttributeError):
        Grouped(sizes).heads = 2
    with pytest.raises(ValueError, match="kv_heads: got 3"):
        replace(sizes, kv_heads=3)


def test_a_projection_in_another_form_has_other_sizes():
    expanded = Latent(13, 3, 6, 5, 4, 7)
    absorbed = expanded.as_form("absorbed")
    assert expanded.sizes == Sizes(13, 3, 3, 9, 7)
    assert absorbed.sizes == Sizes(13, 3, 1, 10, 6)
    shared = MultiValue(Sizes(**FIVE))
    assert (shared.groups, shared.sizes) == (2, Sizes(13, 4, 4, 5, 7))


def test_five_arguments_are_still_taken():
    """By place and by name, with arguments of its own behind them; the parameters are those of today's way."""
    for old, new in (
        (lambda: Grouped(13, 4, 2, 5, 7), lambda: Grouped(Sizes(**FIVE))),
        (lambda: Gates(13, 4, 2, head_dim=5, value_dim=7, at="key"), lambda: Gates(Sizes(**FIVE), "key")),
        (lambda: Gates(13, 4, 2, 5, 7, "key", False), lambda: Gates(Sizes(**FIVE), "key", each=False)),
        (lambda: MultiValue(**FIVE), lambda: MultiValue(sizes=Sizes(**FIVE))),
        (
            lambda: regard.projection("nexus", **FIVE | {"kv_heads": 4}, order=1),
            lambda: regard.projection("nexus", sizes=Sizes(13, 4, 4, 5, 7), order=1),
        ),
    ):
        torch.manual_seed(0)
        with pytest.deprecated_call(match=r"\(width, …\) is now \w+\(Sizes\(width, …\)\)"):
            before = old()
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            now = new()
        assert same(before, now)
        assert (before.sizes, type(before)) == (now.sizes, type(now))


def test_a_projection_written_for_five_arguments_works():
    class Old(Grouped):
        """Takes what 0.1 took, and hands it on."""

        def __init__(self, width, heads, kv_heads, head_dim, value_dim, factor=2):
            super().__init__(width, heads, kv_heads, head_dim, value_dim)
            self.factor = factor

    with pytest.deprecated_call():
        old = Old(13, 4, 2, 5, 7, factor=3)
    assert (old.sizes, old.factor) == (Sizes(**FIVE), 3)


def test_what_is_missing_or_no_size_is_said():
    with pytest.raises(TypeError, match="heads"), pytest.deprecated_call():
        Grouped(13)
    with pytest.raises(TypeError, match="sizes"):
        Grouped()
    with pytest.raises(TypeError, match=r"sizes: got '13', want Sizes\(width"):
        Grouped("13")
    with pytest.raises(ValueError, match="kv_heads: got 3"), pytest.deprecated_call():
        Nexus(13, 4, 3, 5, 7)


def test_only_these_sizes_are_meant():
    """Networks have sizes of their own; the signature of a projection is that of today."""
    assert takes_sizes(Grouped)
    assert takes_sizes(Nexus)
    assert not takes_sizes(BoundaryAttention)
    assert not takes_sizes(Latent)
    assert list(inspect.signature(Nexus).parameters) == ["sizes", "order"]


@pytest.mark.parametrize("text", ["gates(kv_heads=1, at=value)", "grouped(value_dim=3)", "nexus(order=2)"])
def test_texts_name_sizes_one_by_one(text):
    """A text's are put over those of the network, without a warning."""
    config = Config(17, width=12, layers="softmax", heads=2, inner=5, projection=text)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        p = LM(config, seed=0).layers[0].attention.projection
    assert config.sizes == Sizes.even(12, 2)
    changed = {"gates": {"kv_heads": 1}, "grouped": {"value_dim": 3}}.get(text.partition("(")[0], {})
    assert p.sizes == replace(config.sizes, **changed)
    with pytest.raises(TypeError, match="one of nexus's: width, heads, kv_heads, head_dim, value_dim, order"):
        Config(17, projection="nexus(orders=2)").attention("softmax")
