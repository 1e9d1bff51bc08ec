"""Codecs, one a file: vectors as few bits, and back. `core.codec` has the contract."""

from regard.codecs.integers import Integers
from regard.codecs.pyramid_vector import PyramidVector
from regard.core.codec import Codec

__all__ = ["Codec", "Integers", "PyramidVector"]
