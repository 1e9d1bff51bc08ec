"""How much a cache may hold, as people say it: tokens, a share of the prompt, or bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from regard.core.errors import wrong
from regard.hosts.growing import PART

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
WANTED = "tokens of a kv head (512), a share of the prompt (0.25), or bytes of the whole cache ('256MiB')"


@dataclass(frozen=True)
class Budget:
    """A size of a cache, of which one of these is given.

    Args:
        tokens: of each kv head. share: of the prompt. bytes: of all layers, heads and sequences together.
    """

    tokens: int | None = None
    share: float | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, given: int | float | str | Budget) -> Budget:
        """From what a person wrote.

        Raises:
            ValueError: no such size, or none above zero. TypeError: neither a number nor a text.
        """
        if isinstance(given, Budget):
            return given
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise wrong("budget", f"{given!r}, a {type(given).__name__}", WANTED, TypeError)
        if isinstance(given, str):
            found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", given)
            if found is None or (found[2] and found[2].upper() not in UNITS):
                raise wrong("budget", repr(given), WANTED)
            if found[2]:
                return cls(bytes=int(float(found[1]) * UNITS[found[2].upper()]))
            return cls.of(float(found[1]) if "." in found[1] else int(found[1]))
        if isinstance(given, int) and given >= 1:
            return cls(tokens=given)
        if isinstance(given, float) and 0 < given <= 1:
            return cls(share=given)
        raise wrong("budget", repr(given), WANTED)

    def size(self, n: int, heads: int, entry: int) -> int:
        """Tokens of each kv head, of a prompt of ``n``; each of ``heads``, in all, takes ``entry`` bytes for one.

        Raises:
            ValueError: so few bytes that nothing is left.
        """
        if self.tokens is not None:
            return self.tokens
        if self.share is not None:
            return max(1, round(self.share * n))
        assert self.bytes is not None
        most = self.bytes // (heads * entry)
        size = most - 1 - most // (PART + 1)  # with room for the next one, and for others behind it
        if size < 1:
            least = 2 * heads * entry
            raise wrong(
                "budget", f"{self.bytes} bytes", f"at least {least}, one token of each of {heads} heads and the next"
            )
        return size

    def __str__(self) -> str:
        if self.bytes is None:
            return str(self.share if self.tokens is None else self.tokens)
        unit = next(name for name in ("GiB", "MiB", "KiB", "B") if self.bytes % UNITS[name.upper()] == 0)
        return f"{self.bytes // UNITS[unit.upper()]}{unit}"
