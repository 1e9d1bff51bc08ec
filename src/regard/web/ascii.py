"""Bytes as text that may stand in a script element: five characters for every four bytes."""

from __future__ import annotations

import string

import numpy as np

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase + "!$()*+,-./:;=?@[]^_{|}~"
"""85 characters, none of which begins markup or ends an attribute."""
POWERS = 85 ** np.arange(4, -1, -1, dtype=np.uint32)


def encode(data: bytes) -> str:
    """The text; of ``k`` last bytes fewer than four, ``k + 1`` characters stand, as in Ascii85."""
    missing = -len(data) % 4
    words = np.frombuffer(data + bytes(missing), dtype=">u4").astype(np.uint32)
    letters = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)
    text = letters[(words[:, None] // POWERS) % 85].tobytes().decode("ascii")
    return text[: len(text) - missing]


def decode(text: str) -> bytes:
    """The bytes of a text that `encode` made."""
    missing = -len(text) % 5
    places = np.zeros(256, dtype=np.uint64)
    places[np.frombuffer(ALPHABET.encode(), dtype=np.uint8)] = np.arange(85)
    digits = places[np.frombuffer((text + ALPHABET[-1] * missing).encode(), dtype=np.uint8)].reshape(-1, 5)
    words = (digits * POWERS.astype(np.uint64)).sum(1).astype(">u4").tobytes()
    return words[: len(words) - missing]
