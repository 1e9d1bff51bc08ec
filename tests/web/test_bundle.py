"""The committed bundle is built from the sources beside it."""

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGURATION = ("package-lock.json", "package.json", "tsconfig.json", "vite.config.ts")


def test_the_bundle_is_not_stale():
    web = ROOT / "web"
    names = [path.relative_to(web).as_posix() for path in (web / "src").rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for name in sorted([*names, *CONFIGURATION]):
        digest.update(name.encode() + b"\0" + (web / name).read_bytes() + b"\0")
    script = (ROOT / "src/regard/web/bundle/regard.js").read_text()
    stamped = re.search(r"built from sources ([0-9a-f]{64})", script)
    assert stamped is not None
    assert stamped[1] == digest.hexdigest(), "rebuild it: make web"


def test_the_bundle_is_small_and_asks_nobody():
    script = (ROOT / "src/regard/web/bundle/regard.js").read_text()
    assert len(script) < 150_000
    assert "cdn" not in script.lower()


def test_the_lock_file_names_no_registry_of_its_own():
    assert '"resolved"' not in (ROOT / "web/package-lock.json").read_text()
