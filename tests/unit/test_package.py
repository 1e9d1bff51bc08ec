"""What is published: the wheel and the sdist, each installed into an environment that knows no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from regard import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder, cwd=ROOT)
    return folder


def run(*command, cwd: Path) -> str:
    """What a command prints that may find nothing through the environment variables of this one."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(package: Path, place: Path) -> Path:
    """An environment with the package, which takes what it depends on from this one's folder of libraries.

    The folder stands last on the path and its own ``.pth`` files are not read there: an editable install stays unseen.
    """
    venv.create(place)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    python = place / "bin/python"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, package, cwd=place)
    assert run(python, "-c", "import regard; print(regard.__file__)", cwd=place).startswith(str(site))
    return site


def test_wheel_and_sdist_install_the_same_and_look_from_there(built, tmp_path):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    sites = [installed(package, tmp_path / package.suffix[1:]) for package in (wheel, sdist)]
    records = [(site / f"regard-{__version__}.dist-info/RECORD").read_text().splitlines() for site in sites]
    first, second = ({line for line in record if line.startswith("regard/")} for record in records)
    assert first == second
    names = {line.split(",")[0] for line in first}
    assert names >= {"regard/py.typed", "regard/hosts/small/tiny/model.safetensors", "regard/cli/__init__.py"}
    assert {"regard/web/bundle/" + path.name for path in (ROOT / "src/regard/web/bundle").iterdir()} <= names
    command = sites[1].parents[2] / "bin/regard"
    said = run(command, "look", "--text", "for item in items:\n    print(item)\n" * 5, "-o", "seen", cwd=tmp_path)
    assert "page.html" in said
    assert (tmp_path / "seen/page.html").stat().st_size > 100_000
