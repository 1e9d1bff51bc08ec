"""The mutants of mechanisms, by the law that must reject them."""

from __future__ import annotations

from regard.core.mechanism import Mechanism

MUTANTS: dict[str, list[type[Mechanism]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Mechanism]) -> type[Mechanism]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register
