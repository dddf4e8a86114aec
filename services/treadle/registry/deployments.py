"""Stored deployments, their revisions, and the ordered list of their changes."""

import json
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from treadle.core.errors import AlreadyExists, Conflict, NotFound
from treadle.registry import models, schema
from treadle.registry.policy import DeploymentPolicy
from treadle.registry.store import Transaction, newest_sequence

ANY_REVISION = 0
MUST_NOT_EXIST = -1


@dataclass(frozen=True, slots=True)
class DeploymentRevision:
    """One revision of a deployment. `body` is a serialized `treadle.v1.Deployment` without registry fields."""

    body: bytes
    revision: int
    updated_micros: int
    updated_by: str


_COLUMNS = [schema.deployment_revisions.c[name] for name in ("body", "revision", "updated_micros", "updated_by")]
"""The columns of a DeploymentRevision, in the order of its fields."""


@dataclass(frozen=True, slots=True)
class DeploymentChange:
    """A deployment's new revision at one sequence number of the history; None: it was deleted."""

    sequence: int
    name: str
    revision: int | None


def apply(
    tx: Transaction, policy: DeploymentPolicy, expected_revision: int = ANY_REVISION, reason: str = ""
) -> DeploymentRevision:
    """Stores the next revision. A deleted deployment that is created again continues its revision numbers.

    AlreadyExists       expected_revision is -1 and the deployment exists
    Conflict            expected_revision is over 0 and not the present one
    FailedPrecondition  a model version in the policy is not registered
    """
    row = tx.connection.execute(
        sa.select(schema.deployments).where(schema.deployments.c.name == policy.name)
    ).one_or_none()
    present = 0 if row is None or row.deleted else row.revision
    _check_expected(policy.name, expected_revision, present)
    models.require_registered(tx.connection, policy.refs(), f"deployment {policy.name!r}")
    revision = 1 if row is None else row.revision + 1
    summary = policy.summary()
    before = _summary(tx.connection, policy.name, present) if present else {}
    details = {"revision": revision, "changed": _diff_summaries(before, summary)}
    sequence = tx.record("deployment.apply", f"deployment:{policy.name}", reason, details)
    tx.connection.execute(
        schema.deployment_revisions.insert(),
        {
            "name": policy.name,
            "revision": revision,
            "body": policy.body,
            "summary_json": json.dumps(summary, sort_keys=True),
            "updated_micros": tx.at_micros,
            "updated_by": tx.actor,
        },
    )
    state = {"revision": revision, "deleted": False, "sequence": sequence}
    if row is None:
        tx.connection.execute(schema.deployments.insert(), {"name": policy.name} | state)
    else:
        table = schema.deployments
        tx.connection.execute(table.update().where(table.c.name == policy.name).values(**state))
    change = {"sequence": sequence, "name": policy.name, "revision": revision}
    tx.connection.execute(schema.deployment_changes.insert(), change)
    return DeploymentRevision(policy.body, revision, tx.at_micros, tx.actor)


def _check_expected(name: str, expected: int, present: int) -> None:
    if expected == MUST_NOT_EXIST and present:
        raise AlreadyExists(f"deployment {name!r} exists already, at revision {present}")
    if expected > 0 and expected != present:
        found = f"is at revision {present}" if present else "does not exist"
        raise Conflict(f"deployment {name!r} {found}, expected {expected}: read it again, then apply")


def _summary(connection: Connection, name: str, revision: int) -> dict[str, object]:
    table = schema.deployment_revisions
    found = connection.execute(
        sa.select(table.c.summary_json).where(table.c.name == name, table.c.revision == revision)
    ).scalar_one()
    return dict(json.loads(found))


def _diff_summaries(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    """Each field that differs, with "from" and "to". Empty and absent values are equal."""
    return {
        field: {"from": before.get(field), "to": value}
        for field, value in after.items()
        if (before.get(field) or None) != (value or None)
    }


def delete(tx: Transaction, name: str, reason: str = "") -> None:
    """Deletes a deployment; its revisions stay readable by number. NotFound if it does not exist."""
    table = schema.deployments
    here = sa.and_(table.c.name == name, table.c.deleted.is_(False))
    row = tx.connection.execute(sa.select(table).where(here)).one_or_none()
    if row is None:
        raise NotFound(f"no deployment {name!r}")
    sequence = tx.record("deployment.delete", f"deployment:{name}", reason, {"last_revision": row.revision})
    tx.connection.execute(table.update().where(here).values(deleted=True, sequence=sequence))
    change = {"sequence": sequence, "name": name, "revision": None}
    tx.connection.execute(schema.deployment_changes.insert(), change)


def get(connection: Connection, name: str, revision: int = 0) -> DeploymentRevision:
    """The current revision (0) or a given one. NotFound if the deployment or the revision does not exist."""
    table = schema.deployments
    row = connection.execute(sa.select(table).where(table.c.name == name)).one_or_none()
    if row is None or (row.deleted and not revision):
        raise NotFound(f"no deployment {name!r}")
    found = revisions(connection, [(name, revision or row.revision)])
    if not found:
        raise NotFound(f"deployment {name!r} has no revision {revision}; its last is {row.revision}")
    return found[0]


def list_deployments(connection: Connection) -> list[DeploymentRevision]:
    """The current revision of every deployment, sorted by name."""
    table, kept = schema.deployments, schema.deployment_revisions
    present = sa.and_(kept.c.name == table.c.name, kept.c.revision == table.c.revision)
    query = sa.select(*_COLUMNS).join(table, present).where(table.c.deleted.is_(False)).order_by(table.c.name)
    return [DeploymentRevision(*row) for row in connection.execute(query)]


def revisions(connection: Connection, wanted: list[tuple[str, int]]) -> list[DeploymentRevision]:
    """The revisions of (name, revision) pairs, in their order; absent ones are left out."""
    table = schema.deployment_revisions
    found: list[DeploymentRevision] = []
    for name, revision in wanted:
        row = connection.execute(
            sa.select(*_COLUMNS).where(table.c.name == name, table.c.revision == revision)
        ).one_or_none()
        if row is not None:
            found.append(DeploymentRevision(*row))
    return found


def snapshot(connection: Connection) -> tuple[list[DeploymentChange], int]:
    """The last change of each existing deployment, oldest first, and the newest sequence number of the history."""
    table = schema.deployments
    query = (
        sa.select(table.c.sequence, table.c.name, table.c.revision)
        .where(table.c.deleted.is_(False))
        .order_by(table.c.sequence)
    )
    return [DeploymentChange(*row) for row in connection.execute(query)], newest_sequence(connection)


def changes_between(connection: Connection, after: int, until: int, limit: int) -> list[DeploymentChange]:
    """Up to `limit` changes with sequence numbers in (after, until], oldest first."""
    table = schema.deployment_changes
    query = (
        sa.select(table)
        .where(table.c.sequence > after, table.c.sequence <= until)
        .order_by(table.c.sequence)
        .limit(limit)
    )
    return [DeploymentChange(*row) for row in connection.execute(query)]
