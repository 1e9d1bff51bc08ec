"""Mechanisms as text: what the command line and `layers=` take."""

import pytest

from regard.core.build import build, parse, parse_layers


def test_a_name_with_arguments():
    assert parse("softmax") == ("softmax", {})
    assert parse("window(size=64, sinks=4)") == ("window", {"size": 64, "sinks": 4})
    assert parse("x(kind=taylor, sizes=(1, 2), bias=-2.5)") == ("x", {"kind": "taylor", "sizes": (1, 2), "bias": -2.5})


def test_layers_repeat():
    assert parse_layers("softmax*2, window(size=3)*1,lightning") == [
        ("softmax", {}),
        ("softmax", {}),
        ("window", {"size": 3}),
        ("lightning", {}),
    ]


@pytest.mark.parametrize("text", ["", "softmax(3)", "a b", "window(size=64", "softmax*", "1+1"])
def test_what_is_no_mechanism_is_refused(text):
    with pytest.raises(ValueError, match="mechanism"):
        parse(text)


@pytest.mark.parametrize("text", ["softmax*0", "softmax*2*3x", "softmax,,window"])
def test_what_is_no_list_of_layers_is_refused(text):
    with pytest.raises(ValueError, match=r"layers|mechanism"):
        parse_layers(text)


def test_what_is_parsed_can_be_built():
    name, config = parse("window(size=64, sinks=4)")
    assert build(name, **config).window.size == 64
