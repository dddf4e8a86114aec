"""Alembic environment: migrates on the connection, and inside the transaction, of `treadle.registry.store`."""

from alembic import context

from treadle.registry import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
with context.begin_transaction():
    context.run_migrations()
