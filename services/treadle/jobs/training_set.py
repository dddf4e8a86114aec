"""Training sets: entity rows joined with features as of their moment, in Parquet, with a digest for lineage."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from treadle.core.errors import InvalidInput
from treadle.core.files import replacing
from treadle.features import definition_codec as codec
from treadle.features.definitions import FeatureService, FeatureView

_METADATA: Final = b"treadle.training_set"


@dataclass(frozen=True)
class TrainingSet:
    """Where a training set lies, and what went into it."""

    path: Path
    feature_service: str
    rows: int
    features: tuple[str, ...]
    """The service's outputs, in order."""
    columns: tuple[str, ...]
    """Every column of the file, in order."""
    data_digest: str
    """SHA-256 over the columns' names, types, nulls and values: the same data gives the same digest anywhere."""
    definitions_digest: str
    """SHA-256 over the feature service, its views and the source digests of its transforms."""


def build_training_set(
    entity_rows: Any,
    service: FeatureService,
    views: Iterable[FeatureView],
    path: Path,
    *,
    provenance: bool = False,
) -> TrainingSet:
    """Joins an Arrow table of entity rows (see `point_in_time_join`) and writes Parquet to `path`, replacing it whole.

    What is returned also stands in the file's metadata. Errors as `point_in_time_join`.
    """
    import pyarrow.parquet as pq

    from treadle.features.lookup_plan import compile_plan
    from treadle.features.offline.point_in_time import point_in_time_join

    by_name = {view.name: view for view in views}
    plan = compile_plan(service, by_name)
    table = point_in_time_join(entity_rows, service, by_name.values(), provenance=provenance)
    made = TrainingSet(
        path,
        service.name,
        table.num_rows,
        plan.outputs,
        tuple(table.column_names),
        data_digest(table),
        definitions_digest(service, by_name.values()),
    )
    with replacing(path) as file:
        pq.write_table(table.replace_schema_metadata({_METADATA: _to_json(made)}), file)
    return made


def read_training_set(path: Path) -> TrainingSet:
    """What a training set's file says about itself. InvalidInput when it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        known = described(pq.read_schema(path))
    except (OSError, pa.ArrowInvalid):
        known = {}
    if not known:
        raise InvalidInput(f"{path} is not a training set")
    return TrainingSet(
        **{**known, "path": path, "features": tuple(known["features"]), "columns": tuple(known["columns"])}
    )


def described(schema: Any) -> dict[str, Any]:
    """What the Arrow schema of a training set says about it: TrainingSet's fields but the path. Empty for others."""
    try:
        known: dict[str, Any] = json.loads((schema.metadata or {})[_METADATA])
    except (KeyError, ValueError):
        return {}
    return known


def data_digest(table: Any) -> str:
    """SHA-256 over an Arrow table's content. How it is chunked, or laid out in a file, does not matter."""
    import pyarrow as pa

    total = hashlib.sha256(f"rows {table.num_rows}\n".encode())
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        total.update(f"{name}\0{column.type}\n".encode())
        array = column.combine_chunks()
        total.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
        _digest_values(total, array)
    return total.hexdigest()


def definitions_digest(service: FeatureService, views: Iterable[FeatureView]) -> str:
    """SHA-256 over a feature service and the views that it names."""
    named = {each.view for each in service.feature_sets}
    parts = [codec.service_to_proto(service), *(codec.view_to_proto(each) for each in views if each.name in named)]
    total = hashlib.sha256()
    for part in sorted(each.SerializeToString(deterministic=True) for each in parts):
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def _digest_values(total: "hashlib._Hash", array: Any) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_fixed_size_binary(array.type) or not pa.types.is_primitive(array.type):
        for value in array.to_pylist():
            raw = value if isinstance(value, bytes) else b"" if value is None else str(value).encode()
            total.update(len(raw).to_bytes(4, "little") + raw)
        return
    if pa.types.is_temporal(array.type):
        array = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    zero = pa.scalar(False if pa.types.is_boolean(array.type) else 0, array.type)
    values = pc.fill_null(array, zero) if array.null_count else array
    total.update(values.to_numpy(zero_copy_only=False).tobytes())


def _to_json(made: TrainingSet) -> bytes:
    known = {key: value for key, value in asdict(made).items() if key != "path"}
    return json.dumps(known).encode()
