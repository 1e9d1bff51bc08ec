"""Layers, mechanisms, projections and parts as text, and what is underlined in a wrong one."""

import pytest
import torch

import regard
from regard.core.build import build_text
from regard.core.spec import Layer, Spec, parse, parse_layer, parse_layers
from regard.networks import LM, Config

SOFTMAX = Layer(Spec("softmax"))


def test_a_name_with_arguments():
    assert parse("softmax") == Spec("softmax")
    assert parse("window(size=64, sinks=4)") == Spec("window", {"size": 64, "sinks": 4})
    found = parse(" x(kind=taylor, sizes=(1, 2), bias=-2.5, of=t5(buckets=8), on=Window(3) | Sinks(2)) ")
    parts = {"of": "t5(buckets=8)", "on": "Window(3) | Sinks(2)"}
    assert found == Spec("x", {"kind": "taylor", "sizes": (1, 2), "bias": -2.5, **parts})
    with pytest.warns(DeprecationWarning, match="Spec.name and Spec.arguments"):
        name, arguments = found
    assert (name, arguments) == ("x", found.arguments)


def test_layers_repeat_and_have_projections_of_their_own():
    window, nexus = Spec("window", {"size": 3}), Spec("nexus", {"order": 2})
    assert parse_layers("softmax*2, window(size=3)*1,lightning") == [
        *(SOFTMAX, SOFTMAX, Layer(window), Layer(Spec("lightning")))
    ]
    assert parse_layers("window(size=3) with nexus(order=2)*2, softmax") == [*[Layer(window, nexus)] * 2, SOFTMAX]
    assert parse_layer("composed(of='a with b')") == Layer(Spec("composed", {"of": "a with b"}))


def test_a_text_is_what_it_is_written_as():
    for text in ("window(size=3) with nexus(order=2)", "x(kind='taylor', sizes=(1, 2))"):
        assert str(parse_layer(text)) == text


def marked(error, text):
    """What is underlined in the message."""
    _, shown, marks = str(error.value).split("\n  ")
    assert shown == text
    return shown[marks.index("^") : len(marks)]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        *(("softmax(3)", "3"), ("a b", "b"), ("window(size=64", "("), ("1+1", "1+1"), ("a(b=c.d)", "c.d")),
        *(("softmax()()", "softmax()()"), ("x(**y)", "**y"), ("größe(7, x=1)", "7")),
    ],
)
def test_what_is_no_mechanism_is_refused_where_it_goes_wrong(text, part):
    with pytest.raises(ValueError, match=r"^mechanism: got .*, want a name") as error:
        parse(text)
    assert marked(error, text) == part


@pytest.mark.parametrize(
    ("text", "part"),
    [
        *(("softmax*0, gla", "*0"), ("softmax*2*3x", "*3x"), ("softmax*", "*"), ("softmax, window(size=), gla", ")")),
        *(("softmax*2, 7*2", "7"),),
    ],
)
def test_what_is_no_list_of_layers_is_refused_where_it_goes_wrong(text, part):
    with pytest.raises(ValueError, match=r"^layers: got") as error:
        parse_layers(text)
    assert marked(error, text) == part


@pytest.mark.parametrize("text", ["", "softmax,,window", "softmax,", "softmax with , gla"])
def test_nothing_in_the_place_of_a_layer(text):
    with pytest.raises(ValueError, match="got nothing"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        *(("softmax, wndow(size=3)", "wndow"), ("softmax, window(size=3, sise=4)*2", "sise=4")),
        *(("window(size=0)", "size=0"), ("softmax with nexuss", "nexuss"), ("softmax with gates(shape=3)", "shape=3")),
        *(("composed(bias=t6), softmax", "bias=t6"), ("softmax with window(size=3)", "window")),
    ],
)
def test_what_a_network_cannot_build_is_underlined_in_its_layers(text, part):
    with pytest.raises((ValueError, LookupError, TypeError)) as error:
        LM(Config(17, 16, text, heads=2))
    assert marked(error, text) == part


def test_a_part_in_a_part_is_underlined_where_it_is_wrong():
    with pytest.raises(TypeError, match=r"bucket: .*did you mean 'buckets'") as error:
        build_text("composed(bias=t5(bucket=8))")
    assert marked(error, "t5(bucket=8)") == "bucket=8"


def test_what_is_parsed_can_be_built():
    assert build_text("window(size=64, sinks=4)").window.size == 64
    assert build_text("window(size=64)", {"heads": 3}, size=5).window.size == 5
    assert build_text("pattern(of=Window(3) | Sinks(2))").support(9, 9, regard.Layout()).sum() > 0


def test_a_layer_of_a_network_has_the_projection_that_it_names():
    model = LM(Config(17, 16, "softmax with nexus(order=2), softmax*2", heads=2, projection="gates"), seed=0)
    kinds = [type(block.attention.projection).__name__ for block in model.layers]
    assert kinds[0] == "Nexus"
    assert kinds[1] == kinds[2] != "Nexus"
    ids = torch.randint(17, (2, 9))
    logits, _ = model.extend(ids, model.start(2))
    torch.testing.assert_close(logits, model(ids), atol=1e-5, rtol=0)
