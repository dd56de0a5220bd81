"""Harmonized tables as parquet with real types: dictionaries, maps, lists and dates.

In memory, closed vocabularies are text and maps are JSON text with sorted keys; in a file they are Arrow dictionaries
and ``map<string, number>``. :func:`medalign3d.files.read_parquet` gives text and Python dictionaries back, which
:func:`medalign3d.ehr.schema.coerce` and :mod:`medalign3d.ehr.text` read alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medalign3d.ehr.schema import Column
from medalign3d.ehr.values import mapping_or_empty
from medalign3d.errors import InputError
from medalign3d.files import write_arrow

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type of a column's ``dtype``.

    >>> str(arrow_type("map<string,float32>")), str(arrow_type("list<int32>")), str(arrow_type("date32"))
    ('map<string, float>', 'list<element: int32>', 'date32[day]')
    """
    import pyarrow as pa

    scalars = {
        "string": pa.string(),
        "float32": pa.float32(),
        "int8": pa.int8(),
        "int32": pa.int32(),
        "bool": pa.bool_(),
        "date32": pa.date32(),
    }
    if dtype == "dictionary":
        return pa.dictionary(pa.int32(), pa.string())
    if dtype.startswith("list<"):
        return pa.list_(pa.field("element", scalars[dtype[5:-1]]))
    if dtype.startswith("map<"):
        key, value = dtype[4:-1].split(",")
        return pa.map_(scalars[key], scalars[value.strip()])
    return scalars[dtype]


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a table with ``columns``; columns that may never be missing are marked so."""
    import pyarrow as pa

    return pa.schema([pa.field(c.name, arrow_type(c.dtype), nullable=c.nullable or c.needs_voxels) for c in columns])


def _cells(values: pd.Series, column: Column) -> list[Any]:
    if column.dtype.startswith("map"):
        number: type = float if "float" in column.dtype else int
        maps = (mapping_or_empty(value) for value in values)
        return [[(name, number(cells[name])) for name in sorted(cells)] for cells in maps]
    if column.dtype.startswith("list"):
        return [list(value) if hasattr(value, "__len__") else None for value in values]
    # An empty text is a text: the record of a person of whom nothing is known.
    cells: list[Any] = values.astype(object).where(values.notna(), None).tolist()
    return cells


def arrow_table(table: pd.DataFrame, columns: Sequence[Column]) -> pa.Table:
    """``table`` as an Arrow table with exactly ``columns`` in their types.

    Raises
    ------
    InputError
        When a column that may not be missing has missing cells, or a cell does not fit its type.
    """
    import pyarrow as pa

    schema = arrow_schema(columns)
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        cells = _cells(table[column.name], column)
        try:
            array = pa.array(cells, type=pa.string() if column.dtype == "dictionary" else field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                "a cell does not fit the type of its column",
                where=f"column {column.name}",
                found=str(error).splitlines()[0],
                expected=column.dtype,
            ) from error
        if not field.nullable and array.null_count:
            raise InputError(
                "a column that may not be missing has missing cells",
                where=f"column {column.name}",
                found=f"{array.null_count} missing",
                expected="none",
            )
        arrays.append(array.dictionary_encode().cast(field.type) if column.dtype == "dictionary" else array)
    return pa.Table.from_arrays(arrays, schema=schema)


def write_table(
    path: str | os.PathLike[str], table: pd.DataFrame, columns: Sequence[Column], metadata: Mapping[str, str]
) -> None:
    """Write ``table`` as parquet with exactly ``columns``, atomically and byte-reproducibly."""
    write_arrow(path, arrow_table(table, columns), metadata)
