"""Segments, and versions in their order."""

from server.db.migrate import run_sql_file

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    run_sql_file("0014_segments.sql")
