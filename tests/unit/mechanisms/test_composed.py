"""Dense attention from parts: what is refused, and by what name."""

import pytest
import torch

import regard
from regard.core.build import build_text
from regard.core.layout import Layout
from regard.core.spec import parse

WRONG = [
    ({"score": "cosine"}, ValueError, "score: got 'cosine', want one of dot, additive, network, distance, phase"),
    ({"bias": "rotary"}, ValueError, "bias: got 'rotary', want one of none, alibi, t5, table"),
    ({"normaliser": "softmax(3)"}, ValueError, "normaliser: got an argument without a name, want a name"),
    (
        {"normaliser": "softmax(power=2)"},
        TypeError,
        "power: got an unknown argument, want one of softmax's: heads, sinks",
    ),
    ({"score": "additive(hidden=3)"}, TypeError, "hidden: got an unknown argument, want one of additive's"),
    ({"score": "distance(scale=0.0)"}, ValueError, r"scale: got 0\.0, want above zero"),
    ({"score": "additive", "heads": 0}, ValueError, "heads, head_dim: got 0, 64"),
    ({"bias": "t5", "heads": 0}, ValueError, "heads: got 0"),
    ({"bias": "alibi(slopes=(1.0, -1.0))"}, ValueError, "slopes: got"),
    ({"bias": "t5(buckets=7)"}, ValueError, "buckets: got 7, want an even number"),
    ({"bias": "t5(max_distance=16)"}, ValueError, "max_distance: got 16, want above half of the 32"),
    ({"bias": "table(grid=(2, 3, 4, 5))"}, ValueError, "grid: got"),
    ({"normaliser": "relu(power=0.5)"}, ValueError, r"power: got 0\.5, want at least 1"),
    ({"softcap": 0.0}, ValueError, r"softcap: got 0\.0"),
    ({"gate": "tanh"}, ValueError, "gate: got 'tanh', want one of heads, silu, sigmoid"),
    ({"score": "distance", "normaliser": "relu"}, ValueError, "normaliser: got 'relu'"),
    ({"score": "distance", "normaliser": "signed", "bias": "alibi"}, ValueError, "normaliser: got 'signed'"),
]


@pytest.mark.parametrize(("config", "kind", "message"), WRONG)
def test_what_cannot_be_built_is_named(config, kind, message):
    with pytest.raises(kind, match=message):
        regard.build("composed", **config)


@pytest.mark.parametrize("parts", [{"score": "additive"}, {"bias": "t5"}, {"normaliser": "softmax(sinks=True)"}])
def test_other_heads_are_named(parts):
    mechanism, q = regard.build("composed", heads=3, head_dim=5, **parts), torch.randn(1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"q: got 2 heads.*, want 3"):
        mechanism(q, q, q)


def test_what_does_not_fit_the_layout_is_named():
    q = torch.randn(1, 2, 7, 5)
    plane = regard.build("composed", bias="table(grid=(2, 3))", heads=2)
    with pytest.raises(ValueError, match="k: got 7 tokens, want at most 6"):
        plane(q, q, q)
    with pytest.raises(ValueError, match=r"layout\.grid: got \(3, 2\), want \(2, 3\)"):
        plane(q[:, :, :6], q[:, :, :6], q[:, :, :6], Layout(grid=(3, 2)))
    with pytest.raises(ValueError, match="k: got 7 keys, want the 6 tokens of q"):
        regard.build("composed", bias="alibi")(q[:, :, :6], q, q)
    with pytest.raises(ValueError, match=r"layout\.causal: got True, want False"):
        regard.build("composed", normaliser="queries")(q, q, q, Layout(causal=True))


def test_a_part_with_arguments_needs_no_quotes():
    bare = "composed(score=network(hidden=3), bias=table(grid=(2, 3)), softcap=1.5)"
    quoted = "composed(score='network(hidden=3)', bias='table(grid=(2, 3))', softcap=1.5)"
    assert parse(bare) == parse(quoted)
    assert build_text(bare).bias.grid == (2, 3)


def test_a_query_at_right_angles_to_a_key_gives_it_no_weight():
    """Under ``signed`` a score of zero counts in the sum of the exponentials alone, fast as by definition."""
    q = torch.eye(3, dtype=torch.float64)[None, None]
    e = torch.tensor(3**-0.5, dtype=torch.float64).exp()
    for mechanism in (regard.build("cog"), regard.build("composed", normaliser="signed")):
        for found in (mechanism(q, q, q), mechanism.weights(q, q)):
            torch.testing.assert_close(found, q * e / (e + 2))
