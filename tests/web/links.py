"""The address a person would copy."""

from __future__ import annotations

from playwright.sync_api import Page

SETTLED = "() => new Promise(done => setTimeout(() => done(location.href), 1000))"


def link_of(page: Page) -> str:
    """The page's address once it says all that was done on the page.

    The page writes what is no step back 200 ms late; a later timer of its own thread comes after that one, however
    busy the machine is, where the first address that has a field may have its value from an action before.
    """
    return page.evaluate(SETTLED)
