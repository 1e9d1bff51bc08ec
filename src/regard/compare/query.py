"""SQL over results."""

from __future__ import annotations

import json
from collections.abc import Iterator

import duckdb
import pyarrow as pa

from regard.core.errors import wrong


def query_table(table: pa.Table, sql: str) -> pa.Table:
    """The answer to ``sql``, to which the rows are the table ``results``; it can read nothing else.

    Raises:
        ValueError: DuckDB's complaint about the query.
    """
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        connection.register("results", table)
        try:
            return connection.sql(sql).to_arrow_table()
        except (duckdb.Error, AttributeError) as error:
            raise wrong("--sql", repr(sql), f"a query of the table `results` ({str(error).splitlines()[0]})") from error


def as_lines(table: pa.Table) -> Iterator[str]:
    """Each row as a line of JSON."""
    return (json.dumps(row, ensure_ascii=False) for row in table.to_pylist())
