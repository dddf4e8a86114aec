"""The registry's Alembic migrations: `env` runs the numbered scripts in `versions`."""
