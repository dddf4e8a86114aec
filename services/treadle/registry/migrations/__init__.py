"""The registry's Alembic migrations: `env` runs them, `versions` holds them, oldest first by number."""
