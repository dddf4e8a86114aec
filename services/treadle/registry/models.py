"""Stored models, their versions, aliases and evaluation reports."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from treadle.core.errors import AlreadyExists, FailedPrecondition, NotFound
from treadle.core.model_ref import ModelRef
from treadle.registry import paging, schema
from treadle.registry.manifest import Manifest
from treadle.registry.paging import Page
from treadle.registry.store import Transaction

_LISTED_FILES = 100


@dataclass(frozen=True, slots=True)
class Model:
    """A model: a name with numbered versions."""

    name: str
    description: str
    owner: str
    created_micros: int
    latest_version: int
    aliases: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """An immutable version; only the aliases that point to it change."""

    ref: ModelRef
    manifest: bytes
    created_micros: int
    created_by: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredReport:
    """An evaluation report of a version."""

    sequence: int
    ref: ModelRef
    report: bytes
    created_micros: int


def create(tx: Transaction, name: str, description: str = "", owner: str = "") -> Model:
    """Creates a model. AlreadyExists if the name is taken."""
    if _model_row(tx.connection, name) is not None:
        raise AlreadyExists(f"model {name!r} exists already")
    row = {"name": name, "description": description, "owner": owner}
    tx.connection.execute(schema.models.insert(), row | {"created_micros": tx.at_micros, "latest_version": 0})
    tx.record("model.create", name, details={"description": description, "owner": owner})
    return Model(name, description, owner, tx.at_micros, 0)


def get(connection: Connection, name: str) -> Model:
    """A model by name. NotFound if it does not exist."""
    row = _model_row(connection, name)
    if row is None:
        raise NotFound(f"no model {name!r} is registered")
    return _model(row, _aliases(connection, [name])[name])


def list_models(connection: Connection, page_size: int, page_token: str) -> Page[Model]:
    """A page of models sorted by name. A page may end early to bound its size in bytes."""
    size, after = paging.page_size(page_size), paging.decode_token("models", page_token, str)
    query = sa.select(schema.models).order_by(schema.models.c.name).limit(size + 1)
    if after is not None:
        query = query.where(schema.models.c.name > after)
    rows = connection.execute(query)
    shown, more = paging.take_page(
        "models", rows, size, lambda r: r.name, lambda r: paging.text_bytes(r.description, r.owner)
    )
    aliases = _aliases(connection, [row.name for row in shown])
    return Page([_model(row, aliases[row.name]) for row in shown], more)


def find_by_idempotency_key(connection: Connection, model: str, key: str) -> ModelVersion | None:
    """The version that an earlier request with this idempotency key created, if any."""
    table = schema.versions
    found = connection.execute(
        sa.select(table.c.version).where(table.c.model == model, table.c.idempotency_key == key)
    ).scalar_one_or_none()
    return None if found is None else get_version(connection, ModelRef(model, found))


def create_version(tx: Transaction, model: str, manifest: Manifest, key: str = "") -> ModelVersion:
    """Registers the next version, and creates the model if it is new.

    With an idempotency key that was used before, returns the version created then.
    """
    seen = find_by_idempotency_key(tx.connection, model, key) if key else None
    if seen is not None:
        return seen
    if manifest.parent is not None:
        require_registered(tx.connection, [manifest.parent], "the manifest's lineage.parent")
    row = _model_row(tx.connection, model)
    latest = create(tx, model).latest_version if row is None else row.latest_version
    ref = ModelRef(model, latest + 1)
    tx.connection.execute(
        schema.versions.insert(),
        {
            "model": model,
            "version": ref.version,
            "backend": manifest.backend,
            "feature_service": manifest.feature_service,
            "manifest": manifest.body,
            "created_micros": tx.at_micros,
            "created_by": tx.actor,
            "idempotency_key": key or None,
        },
    )
    table = schema.models
    tx.connection.execute(table.update().where(table.c.name == model).values(latest_version=ref.version))
    tx.record("version.create", str(ref), details=_version_details(manifest))
    return ModelVersion(ref, manifest.body, tx.at_micros, tx.actor)


def _version_details(manifest: Manifest) -> dict[str, object]:
    files = {file.path: file.sha256 for file in manifest.files[:_LISTED_FILES]}
    details: dict[str, object] = {"backend": manifest.backend, "files": files, "file_count": len(manifest.files)}
    if manifest.feature_service:
        details["feature_service"] = manifest.feature_service
    if manifest.parent is not None:
        details["parent"] = str(manifest.parent)
    return details


def get_version(connection: Connection, ref: ModelRef) -> ModelVersion:
    """A version by number. NotFound, with the latest version in its message."""
    table = schema.versions
    row = connection.execute(
        sa.select(table.c.manifest, table.c.created_micros, table.c.created_by).where(
            table.c.model == ref.model, table.c.version == ref.version
        )
    ).one_or_none()
    if row is None:
        latest = get(connection, ref.model).latest_version
        raise NotFound(f"model {ref.model!r} has no version {ref.version}; its latest is {latest}")
    return ModelVersion(ref, *row, aliases=_aliases_by_version(connection, ref.model)[ref.version])


def get_by_alias(connection: Connection, model: str, alias: str) -> ModelVersion:
    """A version by alias. NotFound, with the existing aliases in its message."""
    aliases = get(connection, model).aliases
    if alias not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise NotFound(f"model {model!r} has no alias {alias!r}; it has: {known}")
    return get_version(connection, ModelRef(model, aliases[alias]))


def list_versions(connection: Connection, model: str, page_size: int, page_token: str) -> Page[ModelVersion]:
    """A page of a model's versions, newest first. A page may end early to bound its size in bytes."""
    scope = f"versions:{model}"
    size, before = paging.page_size(page_size), paging.decode_token(scope, page_token, int)
    latest = get(connection, model).latest_version
    table = schema.versions
    query = (
        sa.select(table.c.version, table.c.manifest, table.c.created_micros, table.c.created_by)
        .where(table.c.model == model, table.c.version < (latest + 1 if before is None else before))
        .order_by(table.c.version.desc())
        .limit(size + 1)
    )
    rows, more = paging.take_page(
        scope, connection.execute(query), size, lambda row: row.version, lambda row: len(row.manifest)
    )
    aliases = _aliases_by_version(connection, model)
    found = [
        ModelVersion(ModelRef(model, r.version), r.manifest, r.created_micros, r.created_by, aliases[r.version])
        for r in rows
    ]
    return Page(found, more)


def set_alias(tx: Transaction, model: str, alias: str, version: int) -> Model:
    """Points the alias to a version; 0 removes it. NotFound for an absent version, or alias to remove."""
    before = get(tx.connection, model).aliases.get(alias)
    table = schema.aliases
    here = sa.and_(table.c.model == model, table.c.alias == alias)
    if version == 0:
        if before is None:
            raise NotFound(f"model {model!r} has no alias {alias!r}")
        tx.connection.execute(table.delete().where(here))
    elif before is None:
        get_version(tx.connection, ModelRef(model, version))
        tx.connection.execute(table.insert(), {"model": model, "alias": alias, "version": version})
    elif version != before:
        get_version(tx.connection, ModelRef(model, version))
        tx.connection.execute(table.update().where(here).values(version=version))
    if version != before:
        details = {"version": version or None, "previous_version": before}
        tx.record("alias.set", f"{model}@{alias}", details=details)
    return get(tx.connection, model)


def add_report(tx: Transaction, ref: ModelRef, report: bytes) -> StoredReport:
    """Stores an evaluation report of a version. NotFound if the version does not exist."""
    get_version(tx.connection, ref)
    sequence = tx.record("report.add", str(ref), details={"size_bytes": len(report)})
    row = {"sequence": sequence, "model": ref.model, "version": ref.version, "report": report}
    tx.connection.execute(schema.reports.insert(), row | {"created_micros": tx.at_micros})
    return StoredReport(sequence, ref, report, tx.at_micros)


def list_reports(connection: Connection, ref: ModelRef, page_size: int, page_token: str) -> Page[StoredReport]:
    """A page of a version's reports, newest first. A page may end early to bound its size in bytes."""
    scope = f"reports:{ref}"
    size, before = paging.page_size(page_size), paging.decode_token(scope, page_token, int)
    get_version(connection, ref)
    table = schema.reports
    query = (
        sa.select(table.c.sequence, table.c.report, table.c.created_micros)
        .where(table.c.model == ref.model, table.c.version == ref.version)
        .order_by(table.c.sequence.desc())
        .limit(size + 1)
    )
    if before is not None:
        query = query.where(table.c.sequence < before)
    rows, more = paging.take_page(
        scope, connection.execute(query), size, lambda row: row.sequence, lambda row: len(row.report)
    )
    return Page([StoredReport(row.sequence, ref, row.report, row.created_micros) for row in rows], more)


def require_registered(connection: Connection, refs: Iterable[ModelRef], where: str) -> None:
    """Raises FailedPrecondition that names every version of `refs` that is not registered; `where` names the source."""
    table = schema.versions
    missing = [
        str(ref)
        for ref in refs
        if connection.execute(
            sa.select(table.c.version).where(table.c.model == ref.model, table.c.version == ref.version)
        ).scalar_one_or_none()
        is None
    ]
    if missing:
        raise FailedPrecondition(f"{where} names versions that are not registered: {', '.join(missing)}")


def _model(row: sa.Row[Any], aliases: dict[str, int]) -> Model:
    return Model(row.name, row.description, row.owner, row.created_micros, row.latest_version, aliases)


def _model_row(connection: Connection, name: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(schema.models).where(schema.models.c.name == name)).one_or_none()


def _aliases(connection: Connection, models: list[str]) -> defaultdict[str, dict[str, int]]:
    table = schema.aliases
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    query = sa.select(table).where(table.c.model.in_(models)).order_by(table.c.alias)
    for model, alias, version in connection.execute(query):
        found[model][alias] = version
    return found


def _aliases_by_version(connection: Connection, model: str) -> defaultdict[int, tuple[str, ...]]:
    found: defaultdict[int, tuple[str, ...]] = defaultdict(tuple)
    for alias, version in _aliases(connection, [model])[model].items():
        found[version] += (alias,)
    return found
