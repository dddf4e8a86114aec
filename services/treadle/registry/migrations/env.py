"""Run by Alembic. Works on the connection, and inside the transaction, that `treadle.registry.store` hands over."""

from alembic import context

from treadle.registry import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
with context.begin_transaction():
    context.run_migrations()
