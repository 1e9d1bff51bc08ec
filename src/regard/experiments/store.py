"""Where results are kept: a folder with one small Parquet file for each finished cell."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from regard.core.errors import reason, wrong
from regard.experiments.cell import Cell, Scalar

FORMAT = "1"
FORMER = {"yardstick_seconds": "baseline_seconds", "yardstick_peak_bytes": "baseline_peak_bytes"}
"""Columns of results that were written under another name."""


class Store:
    """The results in a folder.

    Each row is written to a file of its own under a passing name and moved into place, so that it is there whole or not
    at all; a run that is killed loses at most the cell that it was measuring, and several processes may add at once.

    Args:
        folder: made if it is missing.

    Raises:
        NotADirectoryError: the path is a file. ValueError: the folder holds other things and no results.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise wrong("folder", f"{self.folder}, a file", "a folder for results", NotADirectoryError)
        self.cells = self.folder / "cells"
        if self.folder.is_dir() and not self.cells.is_dir() and any(self.folder.iterdir()):
            raise wrong("folder", f"{self.folder}, which holds other things", "a new folder, or one with results")

    def done(self, cell: Cell) -> bool:
        """Whether the cell's row is there."""
        return self.path(cell).is_file()

    def row(self, cell: Cell) -> dict[str, Any]:
        """The cell's row.

        Raises:
            ValueError: a file that is no row of results.
        """
        return read(self.path(cell)).to_pylist()[0]

    def path(self, cell: Cell) -> Path:
        return self.cells / f"{cell.key}.parquet"

    def add(self, cell: Cell, figures: Mapping[str, Scalar], command: str) -> None:
        """Commits the row of a finished cell; one that is there already is replaced.

        Raises:
            OSError: it cannot be written, and why.
        """
        row = {"key": cell.key, "kind": cell.kind, **cell.fields, **figures, "command": command, **origin()}
        columns = {name: pa.array([value], type_of(value)) for name, value in row.items()}
        target = self.path(cell)
        passing = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns).replace_schema_metadata({"regard": FORMAT}), passing)
            os.replace(passing, target)
        except OSError as error:
            passing.unlink(missing_ok=True)
            wanted = "one that can be written: rows that were kept are there, and the same command goes on from them"
            raise wrong("folder", f"{self.folder}: {reason(error)}", wanted, OSError) from error

    def table(self) -> pa.Table:
        """Every row, the oldest first; columns that a row lacks are null.

        Raises:
            FileNotFoundError: no results yet. ValueError: a file that is no row of results, by its name.
        """
        files = sorted(self.cells.glob("*.parquet"))
        if not files:
            wanted = "one that `regard compare -o` wrote"
            raise wrong("folder", f"{self.folder}, without results", wanted, FileNotFoundError)
        table = pa.concat_tables([read(file) for file in files], promote_options="permissive")
        return table.combine_chunks().sort_by([("date", "ascending"), ("key", "ascending")])

    def rows(self) -> list[dict[str, Any]]:
        """`table` as dictionaries."""
        return self.table().to_pylist()


def read(file: Path) -> pa.Table:
    """One row, or a ValueError that names the file."""
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise wrong("folder", f"{file}, no Parquet file", "rows of results: delete it and run again") from error
    if (table.schema.metadata or {}).get(b"regard") != FORMAT.encode():
        raise wrong("folder", f"{file}, which regard did not write", "rows of results only")
    return table.rename_columns([FORMER.get(name, name) for name in table.column_names])


def type_of(value: Scalar) -> pa.DataType:
    """The column type of a value: floats are never taken for integers, so that rows of a column fit together."""
    known = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), type(None): pa.null()}
    return known[type(value)]


@cache
def machine() -> dict[str, Scalar]:
    """What the results were measured with."""
    return {
        "regard": metadata.version("regard"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {memory() / 2**30:.0f} GiB, {platform.system()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def origin() -> dict[str, Scalar]:
    """`machine`, and the time."""
    return machine() | {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory() -> int:
    """Bytes of memory, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
