"""A real browser for the tests of pages."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack

import pytest
from playwright.sync_api import expect, sync_playwright

from web.serving import served

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
HAND = float(os.environ.get("HAND_SLOWED", "0"))  # milliseconds before each action: a page that is ahead of its user
LATE = float(os.environ.get("PAGES_LATE", "0"))  # milliseconds by which all comes later that a page does not do at once
PATIENCE = 120_000  # milliseconds: an end for what hangs, out of reach of what is merely slow

BEGUN = """() => new Promise(done => {
  const later = then => requestAnimationFrame(() => setTimeout(then))
  later(() => later(done))
})"""
LATER = """{
  const [frame, timer, whole, told] = [requestAnimationFrame, setTimeout, Response.prototype.arrayBuffer, fetch]
  const wait = () => new Promise(go => timer(go, LATE))
  window.requestAnimationFrame = then => frame(time => timer(() => then(time), LATE))
  window.setTimeout = (then, after = 0) => timer(then, after + LATE)
  window.fetch = (...asked) => wait().then(() => told(...asked))
  Response.prototype.arrayBuffer = function () { return wait().then(() => whole.call(this)) }
}""".replace("LATE", str(LATE))
HELD = """{
  const whole = Response.prototype.arrayBuffer
  const free = new Promise(go => { window.unpack = go })
  Response.prototype.arrayBuffer = function () { return free.then(() => whole.call(this)) }
}"""


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests of this module."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS, timeout=PATIENCE, slow_mo=HAND
        )
        expect.set_options(PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture
def serve():
    """Serves the record in a folder until the test has ended; gives its address."""
    with ExitStack() as servers:
        yield lambda folder: servers.enter_context(served(folder))


@pytest.fixture
def open_page(browser, serve):
    """Opens an address; fails the test if the page then logs an error or asks the network for anything.

    Gives the page once it hears keys and has its sizes: what its views do after their first frame, and what follows
    from that in the next. What it unpacks or asks a server for may come later.
    A page that is ``held`` unpacks nothing, and gets no tiles, until it is told to ``unpack()``.
    Pages close before what serves them (``serve`` is torn down later): what a page still asks for is answered.
    """
    pages, troubles = [], []

    def opened(address: str, *, held: bool = False, **options):
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 860}} | options)
        page.set_default_timeout(PATIENCE)
        if LATE:
            page.add_init_script(LATER)
        if held:
            page.add_init_script(HELD)
        page.on(
            "console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"dialog {dialog.message}"))
        page.goto(address)
        page.wait_for_selector("main section")
        page.evaluate(BEGUN)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert troubles == []
