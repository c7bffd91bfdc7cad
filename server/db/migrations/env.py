"""Alembic's entry: one advisory lock, 4 s for any lock, a transaction per migration."""

from alembic import context
from sqlalchemy import Connection, text

MIGRATION_LOCK = 0x7665_7374  # "vest"


def run(connection: Connection) -> None:
    """Migrate over an open connection (given by `server.db.migrate`)."""
    connection.execute(text("set lock_timeout = '4s'"))
    connection.execute(text(f"select pg_advisory_lock({MIGRATION_LOCK})"))
    connection.commit()
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
