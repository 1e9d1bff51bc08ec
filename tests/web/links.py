"""What is read of a page once it is there: the address a person would copy, lists and maps that are unpacked."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

SETTLED = "() => new Promise(done => setTimeout(() => done(location.href), 1000))"


def link_of(page: Page) -> str:
    """The page's address once it says all that was done on the page.

    The page writes what is no step back 200 ms late; a later timer of its own thread comes after that one, however
    busy the machine is, where the first address that has a field may have its value from an action before.
    """
    return page.evaluate(SETTLED)


def texts_of(found: Locator) -> list[str]:
    """What stands in all of them, once there is one: a list that is still unpacked has none, and would match any."""
    expect(found).not_to_have_count(0)
    return found.all_inner_texts()


def unpacked_map(page: Page) -> None:
    """Waits for the map of a page that names no pair: it says one, of the arrow key that is pressed, once it has it."""
    page.locator("canvas[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#readout")).to_contain_text("→")
