"""People, audit, the register's rest, credentials, claims, revocation."""

from server.db.migrate import run_sql_file

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql_file("0002_identity.sql")
