"""The committed bundle is built from the sources beside it."""

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGURATION = ("package-lock.json", "package.json", "tsconfig.json", "vite.config.ts")


@pytest.mark.parametrize("name", ["regard.js", "results.js"])
def test_the_bundle_is_not_stale(name):
    web = ROOT / "web"
    files = [path.relative_to(web).as_posix() for path in (web / "src").rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for file in sorted([*files, *CONFIGURATION]):
        digest.update(file.encode() + b"\0" + (web / file).read_bytes() + b"\0")
    script = (ROOT / "src/regard/web/bundle" / name).read_text()
    stamped = re.search(r"built from sources ([0-9a-f]{64})", script)
    assert stamped is not None
    assert stamped[1] == digest.hexdigest(), "rebuild it: make web"


@pytest.mark.parametrize("name", ["regard.js", "results.js"])
def test_the_bundle_is_small_and_asks_nobody(name):
    script = (ROOT / "src/regard/web/bundle" / name).read_text()
    assert len(script) < 185_000
    assert "cdn" not in script.lower()


def test_the_lock_file_names_no_registry_of_its_own():
    assert '"resolved"' not in (ROOT / "web/package-lock.json").read_text()
