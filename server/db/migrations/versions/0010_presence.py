"""Presence of devices, what happened to them, and the platform's own."""

from server.db.migrate import run_sql_file

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    run_sql_file("0010_presence.sql")
