"""Layers of settings, what devices said of them, and commands."""

from pathlib import Path

from server.db.migrate import run_sql_file

revision = "0012"
down_revision = max(
    path.name[:4] for path in Path(__file__).parent.glob("0*.py") if path.name[:4] < revision
)


def upgrade() -> None:
    run_sql_file("0012_desired.sql")
