"""Deployments and their revisions, as they are kept; and what changed, in order."""

import json
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from treadle.core.errors import AlreadyExists, Conflict, NotFound
from treadle.registry import models, schema
from treadle.registry.policy import Policy
from treadle.registry.store import Transaction, newest_sequence

ANY_REVISION = 0
MUST_NOT_EXIST = -1


@dataclass(frozen=True, slots=True)
class Deployment:
    """One revision. `body` is the serialized contract without what the registry sets."""

    body: bytes
    revision: int
    updated_micros: int
    updated_by: str


_COLUMNS = [schema.deployment_revisions.c[name] for name in ("body", "revision", "updated_micros", "updated_by")]
"""What makes a Deployment, in the order of its fields."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a deployment became at one point of the history; revision None: it was deleted."""

    sequence: int
    name: str
    revision: int | None


def apply(tx: Transaction, policy: Policy, expected_revision: int = ANY_REVISION, reason: str = "") -> Deployment:
    """The next revision. Revisions of a deployment that was deleted and made anew go on counting.

    AlreadyExists       expected_revision is -1 and the deployment exists
    Conflict            expected_revision is over 0 and not the present one
    FailedPrecondition  a version that it names is not registered
    """
    row = tx.connection.execute(
        sa.select(schema.deployments).where(schema.deployments.c.name == policy.name)
    ).one_or_none()
    present = 0 if row is None or row.deleted else row.revision
    _check_expected(policy.name, expected_revision, present)
    models.require(tx.connection, policy.refs(), f"deployment {policy.name!r}")
    revision = 1 if row is None else row.revision + 1
    summary = policy.summary()
    before = _summary(tx.connection, policy.name, present) if present else {}
    details = {"revision": revision, "changed": _changed(before, summary)}
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
    return Deployment(policy.body, revision, tx.at_micros, tx.actor)


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


def _changed(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    """Each field that differs, as "from" and "to". Empty and absent are the same."""
    return {
        field: {"from": before.get(field), "to": value}
        for field, value in after.items()
        if (before.get(field) or None) != (value or None)
    }


def delete(tx: Transaction, name: str, reason: str = "") -> None:
    """NotFound if there is none. Its revisions stay readable by number."""
    table = schema.deployments
    here = sa.and_(table.c.name == name, table.c.deleted.is_(False))
    row = tx.connection.execute(sa.select(table).where(here)).one_or_none()
    if row is None:
        raise NotFound(f"no deployment {name!r}")
    sequence = tx.record("deployment.delete", f"deployment:{name}", reason, {"last_revision": row.revision})
    tx.connection.execute(table.update().where(here).values(deleted=True, sequence=sequence))
    change = {"sequence": sequence, "name": name, "revision": None}
    tx.connection.execute(schema.deployment_changes.insert(), change)


def get(connection: Connection, name: str, revision: int = 0) -> Deployment:
    """As it is (revision 0), or as it was. NotFound for a deployment or a revision that is none."""
    table = schema.deployments
    row = connection.execute(sa.select(table).where(table.c.name == name)).one_or_none()
    if row is None or (row.deleted and not revision):
        raise NotFound(f"no deployment {name!r}")
    found = revisions(connection, [(name, revision or row.revision)])
    if not found:
        raise NotFound(f"deployment {name!r} has no revision {revision}; its last is {row.revision}")
    return found[0]


def listed(connection: Connection) -> list[Deployment]:
    """All that exist now, by name."""
    table, kept = schema.deployments, schema.deployment_revisions
    present = sa.and_(kept.c.name == table.c.name, kept.c.revision == table.c.revision)
    query = sa.select(*_COLUMNS).join(table, present).where(table.c.deleted.is_(False)).order_by(table.c.name)
    return [Deployment(*row) for row in connection.execute(query)]


def revisions(connection: Connection, wanted: list[tuple[str, int]]) -> list[Deployment]:
    """These revisions, in this order; absent ones are left out."""
    table = schema.deployment_revisions
    found: list[Deployment] = []
    for name, revision in wanted:
        row = connection.execute(
            sa.select(*_COLUMNS).where(table.c.name == name, table.c.revision == revision)
        ).one_or_none()
        if row is not None:
            found.append(Deployment(*row))
    return found


def snapshot(connection: Connection) -> tuple[list[Change], int]:
    """The last change of each deployment that exists, oldest first, and the history's end."""
    table = schema.deployments
    query = (
        sa.select(table.c.sequence, table.c.name, table.c.revision)
        .where(table.c.deleted.is_(False))
        .order_by(table.c.sequence)
    )
    return [Change(*row) for row in connection.execute(query)], newest_sequence(connection)


def changes_between(connection: Connection, after: int, until: int, limit: int) -> list[Change]:
    """The next changes after one sequence number, up to another, oldest first."""
    table = schema.deployment_changes
    query = (
        sa.select(table)
        .where(table.c.sequence > after, table.c.sequence <= until)
        .order_by(table.c.sequence)
        .limit(limit)
    )
    return [Change(*row) for row in connection.execute(query)]
