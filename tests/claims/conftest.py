"""`make claims` writes what the claim tests measured to docs/claims.md."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

import regard

COMMAND = "make claims"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keeps the first line of the test's docstring with its report: the claim in words."""
    report = yield
    report.claim = (item.function.__doc__ or item.name).strip().split("\n")[0]
    return report


def pytest_terminal_summary(terminalreporter, config):
    """Writes the table, if asked to."""
    target = config.getoption("--write-claims")
    if target is None:
        return
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    Path(target).write_text(table(sorted(reports, key=lambda report: report.nodeid)))
    terminalreporter.write_line(f"claims written to {target}")


def table(reports) -> str:
    """The page: one row a claim, with the figures that its test recorded as properties."""
    rows = [
        f"| `{report.nodeid.removeprefix('tests/claims/')}` | {report.claim} "
        f"| {'reproduced' if report.passed else '**not reproduced**'} "
        f"| {'; '.join(f'{name} {value}' for name, value in report.user_properties)} |"
        for report in reports
    ]
    machine = f"regard {regard.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    head = (
        "# What is reproduced\n\n"
        f"Written by `{COMMAND}` ({machine}, {torch.get_num_threads()} CPU threads); do not edit.\n\n"
        "| test | claim | result | measured |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"
