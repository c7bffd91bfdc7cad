"""KPIs: targets, rosters, campaigns, rates of exchange."""

from server.db.migrate import run_sql_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql_file("0003_numbers.sql")
