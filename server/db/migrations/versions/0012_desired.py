"""Layers of settings, what devices said of them, and commands."""

from server.db.migrate import run_sql_file

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_sql_file("0012_desired.sql")
