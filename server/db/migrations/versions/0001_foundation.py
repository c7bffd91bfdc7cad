"""Organisations to assignments, cursors, hypertables, rollups, isolation."""

from server.db.migrate import run_sql_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql_file("0001_foundation.sql")
