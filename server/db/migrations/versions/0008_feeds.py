"""The feed of changes, webhooks, Monday digests."""

from server.db.migrate import run_sql_file

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql_file("0008_feeds.sql")
