"""The page: one HTML file that works offline, assembled from a record and the committed bundle.

Whatever a prompt contains stays data. Tokens travel in JSON whose ``<`` are written ``\\u003c``, so nothing in them can
end the element; the page sets text only through text nodes; and its Content-Security-Policy admits this one script and
this one style sheet by their hashes, no other code, no network (when served: its own server), and no assignment of HTML
from strings.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from pathlib import Path
from typing import Any

from regard.web.payload import pack

BUNDLE = Path(__file__).parent / "bundle"


def write_page(folder: Path, target: Path | None = None) -> Path:
    """Writes the page of the record in ``folder`` to ``target`` (``folder/page.html`` if left out); returns where."""
    target = target or folder / "page.html"
    target.write_text(page_html(folder), encoding="utf-8")
    return target


def page_html(folder: Path, served: bool = False) -> str:
    """The whole page of the record in ``folder``; ``served`` lets it ask its server for exact weights."""
    payload = pack(folder)
    script, style = bundle()
    record = payload.header["record"]
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy(script, style, served)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta name="regard-served" content="{"yes" if served else "no"}">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(record['model']['name'])} · {record['tokens']:,} tokens · regard</title>",
        f"<style>{style}</style>",
        '<div id="page"></div>',
        f'<script type="application/json" id="header">{embed(payload.header)}</script>',
    ]
    for name, blob in payload.blobs:
        parts.append(f'<script type="text/plain" id="{name}">{base64.b64encode(blob).decode("ascii")}</script>')
    parts.append(f"<script>{script}</script>")
    return "\n".join(parts) + "\n</html>\n"


@cache
def bundle() -> tuple[str, str]:
    """The committed script and style sheet."""
    script, style = ((BUNDLE / name).read_text(encoding="utf-8") for name in ("regard.js", "regard.css"))
    return script, style


def policy(script: str, style: str, served: bool) -> str:
    """The Content-Security-Policy of the page."""
    rules = {
        "default-src": "'none'",
        "script-src": fingerprint(script),
        "style-src": fingerprint(style),
        "img-src": "data:",
        "connect-src": "'self'" if served else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def fingerprint(text: str) -> str:
    """The text's hash as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embed(value: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
