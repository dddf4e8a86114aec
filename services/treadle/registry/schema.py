"""The tables in SQLAlchemy Core. `migrations` creates them; a test compares the two.

`versions`, `reports`, `deployment_revisions`, `deployment_changes` and `history` are append-only: the migration adds
triggers that refuse updates and deletions.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# The newest migration. A constant, so that a start with nothing to migrate need not import Alembic.
HEAD = "0001"
APPEND_ONLY = ("versions", "reports", "deployment_revisions", "deployment_changes", "history")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row: the id of this registry, and the sequence number of its last event. Every writer locks it first.
head = Table(
    "head",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("registry_id", String(32), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

models = Table(
    "models",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("description", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_micros", BigInteger, nullable=False),
    Column("latest_version", BigInteger, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(128), ForeignKey(models.c.name), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("backend", String(128), nullable=False),
    Column("feature_service", Text, nullable=False),
    # A serialized treadle.v1.Manifest.
    Column("manifest", LargeBinary, nullable=False),
    Column("created_micros", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("idempotency_key", String(256), nullable=True),
    UniqueConstraint("model", "idempotency_key"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("version", BigInteger, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

reports = Table(
    "reports",
    metadata,
    # Sequence number of the history event that added the report.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("model", String(128), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("report", LargeBinary, nullable=False),
    Column("created_micros", BigInteger, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
    Index(None, "model", "version", "sequence"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("name", String(128), primary_key=True),
    # Continues when a deleted deployment is created again, so that a revision number is never reused.
    Column("revision", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    # Sequence number of its last change.
    Column("sequence", BigInteger, nullable=False),
)

deployment_revisions = Table(
    "deployment_revisions",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    # A serialized treadle.v1.Deployment without the fields that the registry sets.
    Column("body", LargeBinary, nullable=False),
    # DeploymentPolicy.summary, from which the history computes its "from … to …".
    Column("summary_json", Text, nullable=False),
    Column("updated_micros", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
)

deployment_changes = Table(
    "deployment_changes",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(128), nullable=False),
    # Null: the deployment was deleted.
    Column("revision", BigInteger, nullable=True),
)

history = Table(
    "history",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at_micros", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(512), nullable=False),
    Column("reason", Text, nullable=False),
    Column("details_json", Text, nullable=False),
)
