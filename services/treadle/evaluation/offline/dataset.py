"""Datasets: Parquet files read into columns, and the conversion of columns to the inputs of a model."""

import glob
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Array, Column
from treadle.core.errors import InvalidInput, NotFound
from treadle.core.hints import unknown
from treadle.plugins.assembly import InputColumn, assemble
from treadle.plugins.tensors import Signature

MAXIMUM_ROWS = 10_000_000


def files_of(path: str) -> list[Path]:
    """The Parquet files of a path (a file, a folder or a glob), in the order of their names.

    NotFound if there is none.
    """
    root = Path(path) if path else None
    if root is not None and root.is_dir():
        found = sorted(root.rglob("*.parquet"))
    else:
        found = sorted(map(Path, glob.glob(path, recursive=True))) if path else []  # noqa: PTH207  # absolute patterns
    found = [file for file in found if file.is_file()]
    if not found:
        raise NotFound(f'dataset "{path}" holds no Parquet file that the evaluation service can see')
    return found


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the bytes of the files, in order, each preceded by its length."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.stat().st_size.to_bytes(8, "big"))
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_columns(files: Sequence[Path], names: Sequence[str]) -> dict[str, Column]:
    """The named columns of all files.

    InvalidInput for missing columns, unsupported types, and datasets without rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(dict.fromkeys(names))
    try:
        tables = []
        for file in files:
            with pq.ParquetFile(file) as parquet:
                known = parquet.schema_arrow.names
                missing = [name for name in wanted if name not in known]
                if missing:
                    words = "; ".join(unknown("column", name, known) for name in missing)
                    raise InvalidInput(f"dataset file {file.name} lacks what is needed: {words}")
                tables.append(parquet.read(columns=wanted))
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise InvalidInput(f"dataset cannot be read as Parquet: {error}") from error
    if not 0 < table.num_rows <= MAXIMUM_ROWS:
        raise InvalidInput(f"dataset has {table.num_rows} rows; 1 to {MAXIMUM_ROWS:,} are wanted")
    return {name: _column(name, table[name]) for name in wanted}


def with_labels(columns: Mapping[str, Column], label: str) -> tuple[dict[str, Column], NDArray[np.int64]]:
    """The rows whose label is known, and their positions in the dataset; InvalidInput if there is no such row."""
    nulls = columns[label].nulls
    if nulls is None:
        return dict(columns), np.arange(columns[label].rows)
    known = np.flatnonzero(~nulls)
    if not known.size:
        raise InvalidInput(f'no row of the dataset has a label: column "{label}" is null throughout')
    taken = {name: column.take(known) for name, column in columns.items()}
    return taken | {label: Column(label, taken[label].dtype, taken[label].values)}, known


def model_inputs(
    signature: Signature, columns: Mapping[str, Column], positions: NDArray[np.int64]
) -> Mapping[str, Array]:
    """Tensors for all rows, by the rule that serving has too. InvalidInput names the first column and row that the
    model does not take; `positions` says where in the dataset each row stands."""
    given = {name: InputColumn(column, source="dataset") for name, column in columns.items()}
    made = assemble(signature, given, len(positions))
    for refusal in made.refusals:
        raise refusal.error(int(positions[refusal.first_row(0, len(positions)) or 0]))
    return made.tensors


def _column(name: str, array: Any) -> Column:
    import pyarrow as pa

    array = array.combine_chunks()
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = array.fill_null("" if text else b"").to_numpy(zero_copy_only=False).astype(object)
        return Column(name, "STRING" if text else "BYTES", values, nulls)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        array = array.cast(pa.timestamp("us"), safe=False)
        filled = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        return Column(name, "TIMESTAMP", filled.astype("datetime64[us]"), nulls)
    if pa.types.is_decimal(kind):
        array, kind = array.cast(pa.float64()), pa.float64()
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        zero = False if pa.types.is_boolean(kind) else 0
        return Column.of(name, array.fill_null(pa.scalar(zero, kind)).to_numpy(zero_copy_only=False), nulls)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _vectors(name, array, nulls)
    raise InvalidInput(f'column "{name}" has the Parquet type {kind}, which no model input can take')


def _vectors(name: str, array: Any, nulls: Array | None) -> Column:
    lengths = np.diff(array.offsets.to_numpy()) if hasattr(array, "offsets") else np.array([array.type.list_size])
    if nulls is not None or len(np.unique(lengths)) != 1:
        raise InvalidInput(f'column "{name}" must hold lists of one length, without nulls')
    return Column.of(name, array.flatten().to_numpy(zero_copy_only=False).reshape(-1, int(lengths[0])))
