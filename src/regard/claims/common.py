"""What many claims say of their figures, so that a declaration can say it with arguments."""

from __future__ import annotations

from regard.claims.figures import Figures, Finding, listed


def within(found: Figures, most: float, figure: str = "apart") -> Finding:
    """Nothing differs by more: what is compared differs by ``most`` at most in every cell."""
    worst = max(found(figure))
    return Finding.of(f"equal to {worst:.0e}" if worst else "equal exactly", worst <= most)


def at_most(found: Figures, figure: str, most: float, said: str, form: str = ".3g") -> Finding:
    """A figure is ``most`` at most in every cell."""
    values = found(figure)
    return Finding.of(f"{said} {listed(values, form)}, wanted at most {format(most, form)}", max(values) <= most)


def at_least(found: Figures, figure: str, least: float, said: str, form: str = ".3g") -> Finding:
    """A figure is ``least`` at least in every cell."""
    values = found(figure)
    return Finding.of(f"{said} {listed(values, form)}, wanted at least {format(least, form)}", min(values) >= least)


def is_true(found: Figures, figure: str, said: str) -> Finding:
    """A figure is true in every cell."""
    values = found(figure)
    return Finding.of(f"{said} in {sum(values)} of {len(values)} cases", all(values))
