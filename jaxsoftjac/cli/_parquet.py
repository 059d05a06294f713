"""Logits in `.parquet` files: a column for each class, or one column of lists, a row in each.

pyarrow is of the optional extra `files`.
"""

import os
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from jaxsoftjac.cli._errors import InputError, chosen, listed, optional, refusing, shortened
from jaxsoftjac.cli._logits import Logits, held
from jaxsoftjac.cli._npy import most_bytes

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import FileMetaData


def read_parquet(path: str, key: str | None, axis: int) -> Logits:
    """The rows of a Parquet file, in memory.

    Args:
        path: The file.
        key: The column of lists; None if there is no other column, or each is of one class.
        axis: The axis along which the classes lie, as if the columns were an array.

    Raises:
        InputError: if the file is malformed, does not hold real numbers, or pyarrow is missing.
    """
    arrow, parquet = optional("pyarrow", path), optional("pyarrow.parquet", path)
    with refusing(path, "a Parquet file"):
        with parquet.ParquetFile(path) as file:
            index = _index_of(file.schema_arrow)
            names = [n for n in file.schema_arrow.names if n not in index]
            names = names if key is None else [chosen(path, names, key)]
            _require_size(file.metadata, path)
            table = file.read(columns=names, use_threads=False)
        if len(names) == 1 and _is_list(table.column(0).type, arrow):
            return held(_lists(table.column(0), path), axis, name=path)
        array = _columns(table, arrow, path)
    return held(array, axis, name=path, classes=tuple(names))


def _index_of(schema: "pyarrow.Schema") -> list[str]:
    """The columns that hold the index of a pandas frame."""
    columns = (schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in columns if isinstance(name, str)]  # else it is a range


def _require_size(metadata: "FileMetaData", path: str) -> None:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    count = sum(g.column(j).num_values for g in groups for j in range(g.num_columns))
    if 8 * count > most_bytes(os.path.getsize(path)):
        raise InputError(f"{path}: expands to {8 * count} bytes, over 100 times the file")


def _is_list(type: "pyarrow.DataType", arrow: ModuleType) -> bool:
    of = arrow.types
    return of.is_list(type) or of.is_large_list(type) or of.is_fixed_size_list(type)


def _lists(column: "pyarrow.ChunkedArray", path: str) -> np.ndarray:
    compute = optional("pyarrow.compute", path)
    lengths = np.unique(compute.fill_null(compute.list_value_length(column), 0).to_numpy())
    if len(lengths) > 1:
        raise InputError(f"{path}: ragged rows: lists of {listed(map(str, lengths))} values")
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), *(lengths if len(lengths) else (0,)))


def _columns(table: "pyarrow.Table", arrow: ModuleType, path: str) -> np.ndarray:
    for field in table.schema:
        if not (arrow.types.is_floating(field.type) or arrow.types.is_integer(field.type)):
            column, kind = shortened(field.name), shortened(str(field.type))
            advice = ": choose it with --key" if _is_list(field.type, arrow) else ""
            raise InputError(f"{path}: column {column!r} is not numeric: {kind}{advice}")
    return np.column_stack([c.to_numpy() for c in table.columns] or [np.empty(0)])
