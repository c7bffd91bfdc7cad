"""Questionnaires of kiosks and phones, their tokens and answers."""

from server.db.migrate import run_sql_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql_file("0005_surveys.sql")
