"""What mkdocs does beside its pages: the reference of all public names, and the pages that lie outside of docs/."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = "reference/index.md"
OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference, and what lies beside docs/, to the pages of the site."""
    root = Path(config.docs_dir).parent
    files.append(File.generated(config, PAGE, content=reference()))
    for page, file in OUTSIDE.items():
        text = (root / file).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def reference() -> str:
    """A heading for each public name of the package, functions first, with what mkdocstrings reads of its source."""
    import regard
    from regard.core.kinds import KINDS

    found = {name: getattr(regard, name) for name in dir(regard)}
    made = {name for name, kind in KINDS.items() if kind.verb == f"regard.{name}"} - set(regard.LATE)
    verbs = [name for name, thing in found.items() if not isinstance(thing, type) and name not in made]
    pages = [
        "# Reference",
        "Everything below is a name of `regard` itself, imported when it is first used.",
        "## Verbs",
    ]
    pages += [section(name, found[name]) for name in verbs]
    pages += [
        f"### {name}\n\n`regard.{name}(name, /, **arguments)`\n\n{' '.join((found[name].__doc__ or '').split())}"
        for name in sorted(made & found.keys())
    ]
    pages += ["## The contract"]
    pages += [section(name, thing) for name, thing in found.items() if isinstance(thing, type)]
    return "\n\n".join(pages) + "\n"


def section(name: str, thing: object) -> str:
    """What mkdocstrings replaces by the documentation of a function or class."""
    options = f"    options:\n      heading: {name}\n      heading_level: 3"
    return f"::: {thing.__module__}.{getattr(thing, '__qualname__', name)}\n{options}"
