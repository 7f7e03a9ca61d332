"""Rows of dataclasses as CSV, and as Parquet where pyarrow is at hand."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any


def write_rows(stem: Path, kind: type, rows: Sequence[Any]) -> None:
    """Write rows as ``stem.csv`` and, with pyarrow, ``stem.parquet``.

    Parameters
    ----------
    stem : Path
        Of the files.
    kind : type
        Dataclass or named tuple of the rows; its fields are the columns.
    rows : sequence
        Of `kind`. Numbers are written so that they are read again bit for bit.
    """
    named = getattr(kind, "_fields", None)
    columns = list(named) if named else [own.name for own in fields(kind)]
    records = [row._asdict() if named else asdict(row) for row in rows]
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return
    own = {name: [record[name] for record in records] for name in columns}
    parquet.write_table(pyarrow.table(own), stem.with_suffix(".parquet"))
