"""PNGs of every view of a page, at two widths and in both themes: `python docs/screenshots.py PAGE FOLDER`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SIZES = {1280: 860, 400: 860}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", help="a page.html, or the address of `regard serve`")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--only", nargs="*", help="names of pictures, such as heads-1280-light; all if left out")
    parser.add_argument("--layer", type=int, default=0, help="layer of the map and the text")
    parser.add_argument("--head", type=int, default=0, help="head of the map and the text")
    parser.add_argument("--token", type=int, help="the chosen token; the last if left out")
    chosen = parser.parse_args()
    address = chosen.page if "://" in chosen.page else Path(chosen.page).resolve().as_uri()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    place = f"layer={chosen.layer}&head={chosen.head}" + ("" if chosen.token is None else f"&token={chosen.token}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for width, height in SIZES.items():
            for theme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=1
                )
                for view in ("heads", "map", "zoom", "text", "received", "help"):
                    name = f"{view}-{width}-{theme}"
                    if not chosen.only or name in chosen.only:
                        shoot(page, address, view, place)
                        page.screenshot(path=chosen.folder / f"{name}.png")
                page.close()
        browser.close()


def shoot(page, address: str, view: str, place: str) -> None:
    """Brings the page to the view, with its pictures drawn."""
    shown = {"zoom": "map", "received": "text&mode=received&over=all", "help": "heads"}.get(view, view)
    page.goto("about:blank")
    page.goto(f"{address}#view={shown}&{place}")
    page.wait_for_selector("main section")
    if view == "zoom":
        page.get_by_role("button", name="to the pin").click()
        page.wait_for_timeout(300)
        page.locator("canvas[tabindex='0']").hover()
    if view == "help":
        page.keyboard.press("?")
    page.wait_for_timeout(700)


if __name__ == "__main__":
    main()
