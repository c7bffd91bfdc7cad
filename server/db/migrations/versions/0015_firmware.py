"""Releases, rollouts with their waves and executions, what devices run, freezes."""

from server.db.migrate import run_sql_file

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    run_sql_file("0015_firmware.sql")
