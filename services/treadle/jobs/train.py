"""Training: calls a user's function with a table, and packages the model that it returns with its lineage.

def train(table, *, trees=100):            # table: a pyarrow.Table
    ...
    return Trained(forest, {"features": rows[:64]}, columns={"features": names}, metrics={"roc_auc": 0.74})

package = run_training("delays:train", Path("train.parquet"), Path("model"), parameters={"trees": 200})
"""

import importlib
import inspect
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treadle.core.errors import InvalidInput, NotFound
from treadle.core.imports import add_path
from treadle.jobs.training_set import data_digest, read_metadata
from treadle.plugins.packaging import save_model
from treadle.v1 import registry_pb2


@dataclass(frozen=True)
class Trained:
    """The return value of a training function: a model, and the arguments of `save_model`."""

    model: Any
    sample: Mapping[str, Any]
    """Real inputs by tensor name, one or more rows."""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Feature names, in order, of an input that packs several features."""
    units: Mapping[str, Sequence[str]] = field(default_factory=dict)
    allow_nan: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    feature_service: str = ""
    """The feature service of the model; empty: the one that the training set names, if any."""
    backend: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


def run_training(
    function: str, data: Path, folder: Path, *, parameters: Mapping[str, Any] | None = None, project: Path = Path()
) -> registry_pb2.Manifest:
    """Calls "module:function", found from `project`, with the Parquet table at `data`; writes a package to `folder`.

    The lineage contains the digest of the rows, the git revision of the code ("+changes" if the working tree differs)
    and the versions of installed packages. `parameters` are passed as keywords and recorded. NotFound for absent data,
    modules or functions; InvalidInput for invalid ones; errors of the function pass through.
    """
    train = find_function(function, project)
    table = _read(data)
    chosen = dict(parameters or {})
    try:
        inspect.signature(train).bind(table, **chosen)
    except TypeError as error:
        raise InvalidInput(
            f"{function} can't be called with the table and {', '.join(chosen) or 'nothing'}: {error}"
        ) from None
    trained = train(table, **chosen)
    if not isinstance(trained, Trained):
        raise InvalidInput(f"{function} returned {type(trained).__name__}; it must return treadle.jobs.train.Trained")
    lineage = registry_pb2.Lineage(
        data_digest=data_digest(table), code_revision=code_revision(_folder_of(train, project)), trained_by=function
    )
    return save_model(
        trained.model,
        folder,
        trained.sample,
        backend=trained.backend,
        columns=trained.columns,
        units=trained.units,
        allow_nan=trained.allow_nan,
        feature_service=trained.feature_service or _feature_service(table),
        parameters={**chosen, **trained.parameters},
        metrics=trained.metrics,
        lineage=lineage,
        description=trained.description,
        options=trained.options,
    )


def find_function(name: str, project: Path) -> Callable[..., Any]:
    """The function behind "module:function", with `project` first on the import path."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise InvalidInput(f"{name!r} is not MODULE:FUNCTION")
    folder = add_path(project)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFound(f"module {error.name!r} can't be found from {folder}") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise NotFound(f"module {module_name!r} has no function {attribute!r}")
    return found  # type: ignore[no-any-return]  # only known to be callable


def code_revision(folder: Path) -> str:
    """The git commit of `folder`, with "+changes" if its files differ from it; "" outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return ""
    changes = _git(folder, "status", "--porcelain", "--", ".")
    return f"{commit}+changes" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # fixed arguments
            ["git", *arguments],  # noqa: S607  # the user's git
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _folder_of(function: Callable[..., Any], project: Path) -> Path:
    file = inspect.getsourcefile(inspect.unwrap(function))
    return Path(file).parent if file else project


def _read(data: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(data)
    except FileNotFoundError:
        raise NotFound(f"training data {data} does not exist") from None
    except (OSError, pa.ArrowInvalid):
        raise InvalidInput(f"training data {data} is no Parquet file") from None


def _feature_service(table: Any) -> str:
    """The feature service in a training set's metadata; "" for other tables."""
    return str(read_metadata(table.schema).get("feature_service", ""))
