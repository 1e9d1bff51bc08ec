"""From a name or a text to a codec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from regard.codecs.integers import Integers
from regard.codecs.pyramid_vector import PyramidVector
from regard.core.build import instantiate
from regard.core.codec import Codec
from regard.core.errors import did_you_mean, wrong
from regard.core.spec import parse

NAMED: dict[str, type[Codec]] = {"integers": Integers, "pvq": PyramidVector, "pyramid_vector": PyramidVector}


def codec_of(given: str | Codec, **config: Any) -> Codec:
    """The codec that is meant, such as ``"pvq(pulses=20)"``, with the arguments ``config``.

    Raises:
        LookupError: no such codec. TypeError: something else than a codec, or an argument that it does not take.
    """
    if isinstance(given, Codec):
        return replace(given, **config)
    if not isinstance(given, str):
        wanted = "the name of a codec, or one as an object, such as regard.codecs.Integers(width=4)"
        raise wrong("codec", f"{given!r}, a {type(given).__name__}", wanted, TypeError)
    spec = parse(given, "codec")
    if spec.name not in NAMED:
        raise wrong("codec", repr(given), f"one of {', '.join(NAMED)}{did_you_mean(spec.name, NAMED)}", LookupError)
    with spec.underlined():
        return instantiate({}, spec.name, NAMED[spec.name], {**spec.arguments, **config})
