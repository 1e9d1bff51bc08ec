"""SQL over results."""

from __future__ import annotations

import json
from collections.abc import Iterator

import duckdb
import pyarrow as pa

from regard.core.errors import wrong

PRINTED = {
    "time": ("seconds", "seconds"),
    "floor": ("floor_seconds", "floor_seconds"),
    "peak": ("peak_bytes", "peak_bytes"),
    "state": ("state_bytes", "state_bytes"),
    "flops": ("flops_formula", "coalesce(flops_formula, flops_counted)"),
    "quartiles": ("ratio_low", "printf('%.2f–%.2f', ratio_low, ratio_high)"),
}
"""The headings under which `compare` prints what rows hold under longer names: ``(a column needed, SQL)``."""


def query_table(table: pa.Table, sql: str) -> pa.Table:
    """The answer to ``sql``, to which the rows are the table ``results``; it can read nothing else.

    Columns are called as in the rows, and as `compare` prints them.

    Raises:
        ValueError: DuckDB's complaint about the query, with the columns that there are.
    """
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        connection.register("rows_as_kept", table)
        connection.execute(f"create temp view results as select *{printed(table.column_names)} from rows_as_kept")
        try:
            return connection.sql(sql).to_arrow_table()
        except (duckdb.Error, AttributeError) as error:
            columns = connection.sql("select * from results limit 0").columns
            wanted = f"a query of the table `results` with columns {', '.join(columns)} ({str(error).splitlines()[0]})"
            raise wrong("--sql", repr(sql), wanted) from error


def printed(names: list[str]) -> str:
    """The further columns of `PRINTED` whose sources are among ``names``, as SQL."""
    return "".join(f", {sql} as {name}" for name, (source, sql) in PRINTED.items() if source in names)


def as_lines(table: pa.Table) -> Iterator[str]:
    """Each row as a line of JSON."""
    return (json.dumps(row, ensure_ascii=False) for row in table.to_pylist())
