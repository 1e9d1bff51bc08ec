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
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from regard.core.files import write_text
from regard.web.ascii import encode
from regard.web.payload import pack

BUNDLE = Path(__file__).parent / "bundle"


def write_page(folder: Path, target: Path | None = None, beside: Path | None = None) -> Path:
    """Writes the page of the record in ``folder`` to ``target``, ``folder/page.html`` if left out; returns where."""
    target = target or folder / "page.html"
    write_text(target, page_html(folder, beside=beside))
    return target


def page_html(folder: Path, served: bool = False, beside: Path | None = None) -> str:
    """The whole page of the record in ``folder``.

    Args:
        served: it may ask its server for exact weights. beside: the folder of another record of as many tokens and
            heads, such as one from before an edit, which the page shows beside it.

    Raises:
        FileNotFoundError, ValueError: as `payload.pack`.
    """
    payload = pack(folder, beside)
    script, style = assets("regard")
    record = payload.header["record"]
    title = f"{record['model']['name']} · {record['tokens']:,} tokens · regard"
    return document(title, script, style, {"header": payload.header}, payload.blobs, served)


def document(
    title: str,
    script: str,
    style: str,
    data: Mapping[str, Any],
    blobs: Iterable[tuple[str, bytes]] = (),
    served: bool = False,
) -> str:
    """A page around a script and a style sheet, with JSON ``data`` and binary ``blobs`` under their ids."""
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy(script, style, served)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta name="regard-served" content="{"yes" if served else "no"}">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{style}</style>",
        '<div id="page"></div>',
    ]
    parts += [f'<script type="application/json" id="{name}">{embed(value)}</script>' for name, value in data.items()]
    for name, blob in blobs:
        parts.append(f'<script type="text/plain" id="{name}">{encode(blob)}</script>')
    parts.append(f"<script>{script}</script>")
    return "\n".join(parts) + "\n</html>\n"


@cache
def assets(name: str) -> tuple[str, str]:
    """The committed script and style sheet of this name."""
    script, style = ((BUNDLE / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
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
