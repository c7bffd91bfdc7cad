"""Recounts of counters, and sheets that follow from them."""

from server.db.migrate import run_sql_file

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql_file("0007_accuracy.sql")
