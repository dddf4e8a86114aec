"""Training sets: entity rows joined with their features at each row's time, in Parquet, with digests for lineage."""

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

_METADATA_KEY: Final = b"treadle.training_set"


@dataclass(frozen=True)
class TrainingSet:
    """The file of a training set, and its provenance."""

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

    The returned values are also stored in the file's metadata. Errors as `point_in_time_join`.
    """
    import pyarrow.parquet as pq

    from treadle.features.lookup_plan import compile_plan
    from treadle.features.offline.point_in_time import point_in_time_join

    by_name = {view.name: view for view in views}
    plan = compile_plan(service, by_name)
    table = point_in_time_join(entity_rows, service, by_name.values(), provenance=provenance)
    training_set = TrainingSet(
        path,
        service.name,
        table.num_rows,
        plan.outputs,
        tuple(table.column_names),
        data_digest(table),
        definitions_digest(service, by_name.values()),
    )
    with replacing(path) as file:
        pq.write_table(table.replace_schema_metadata({_METADATA_KEY: _to_json(training_set)}), file)
    return training_set


def read_training_set(path: Path) -> TrainingSet:
    """The training set of a file, from its metadata. InvalidInput for other files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        fields = read_metadata(pq.read_schema(path))
    except (OSError, pa.ArrowInvalid):
        fields = {}
    if not fields:
        raise InvalidInput(f"{path} is not a training set")
    return TrainingSet(
        **{**fields, "path": path, "features": tuple(fields["features"]), "columns": tuple(fields["columns"])}
    )


def read_metadata(schema: Any) -> dict[str, Any]:
    """The training set metadata of an Arrow schema: TrainingSet's fields except the path. Empty for other tables."""
    try:
        fields: dict[str, Any] = json.loads((schema.metadata or {})[_METADATA_KEY])
    except (KeyError, ValueError):
        return {}
    return fields


def data_digest(table: Any) -> str:
    """SHA-256 over an Arrow table's content, independent of chunks and file layout."""
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


def _to_json(training_set: TrainingSet) -> bytes:
    fields = {key: value for key, value in asdict(training_set).items() if key != "path"}
    return json.dumps(fields).encode()
