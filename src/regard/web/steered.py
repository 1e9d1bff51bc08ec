"""The page of a steered model: what it said before and after, the likeliest next tokens, and both sets of maps."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem;
  color: #1c1c1c; background: #fff }
@media (prefers-color-scheme: dark) { body { color: #e6e6e6; background: #16181c } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: right }
td:first-child, th:first-child { text-align: left; font-family: ui-monospace, monospace; white-space: pre }
mark { background: #ffd54a; color: #1c1c1c } iframe { width: 100%; height: 48rem; border: 1px solid #8888 }
"""


def steered_html(
    text: str,
    edits: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    chances: Sequence[tuple[str, float, float]],
    divergence: float,
    maps: Path,
    passages: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
        text: the prompt. edits: that were made, as texts. before, after: what was generated, token by token.
        chances: next tokens, with the probability of each before and after. divergence: KL of the two, in nats.
        maps: the page of the maps, which shows those of before beside those of after, relative to this one.
        passages: of the prompt, that the edits are about.
    """
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    told = "the same" if same == len(before) == len(after) else f"another from token {same + 1} on"
    cells = "".join(
        f"<tr><td>{html.escape(repr(token))}</td><td>{old:.2%}</td><td>{new:.2%}</td>"
        f"<td>{100 * (new - old):+.2f}</td></tr>"
        for token, old, new in sorted(chances, key=lambda row: -row[1])
    )
    ways = "".join(
        f"<section><h3>{name}</h3><pre>{continued(said, same)}</pre></section>"
        for name, said in (("before", before), ("after", after))
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'frame-src * file:">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>steered · regard</title><style>{STYLE}</style>",
        "<h1>Before and after</h1>",
        f"<p>{'<br>'.join(f'<code>{html.escape(edit)}</code>' for edit in edits)}</p>",
        f"<h2>Prompt{', with what the edits are about' if passages else ''}</h2><pre>{shown(text, passages)}</pre>",
        f'<h2>What it says: {told}</h2><div class="two">{ways}</div>',
        "<h2>Next token</h2>",
        f"<p>Kullback–Leibler divergence of after from before: {divergence:.3f} nats; 0 where nothing changed.</p>",
        f"<table><tr><th>token</th><th>before</th><th>after</th><th>change, points</th></tr>{cells}</table>",
        f'<h2>Maps</h2><iframe src="{html.escape(maps.as_posix())}" title="maps before and after"></iframe>',
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def continued(pieces: Sequence[str], same: int) -> str:
    """What was generated, marked from where it differs."""
    first, rest = (html.escape("".join(part)) for part in (pieces[:same], pieces[same:]))
    return first + (f"<mark>{rest}</mark>" if rest else "")


def shown(text: str, passages: Sequence[str]) -> str:
    """A text with some passages marked, wherever they stand."""
    if not passages:
        return html.escape(text)
    every = "|".join(re.escape(passage) for passage in sorted(passages, key=len, reverse=True))
    pieces = re.split(f"({every})", text)
    return "".join(f"<mark>{html.escape(p)}</mark>" if at % 2 else html.escape(p) for at, p in enumerate(pieces))
