"""What the database says of itself."""

from sqlalchemy import BigInteger, Boolean, Column, Integer, Table, text

from server.db.tables.columns import metadata, stamped

dataset = Table(
    "dataset",
    metadata,
    Column("id", BigInteger, nullable=False),
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    stamped("created_at"),
)
schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("version", Integer, nullable=False),
    Column("compatible_from", Integer, nullable=False),
)
