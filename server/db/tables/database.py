"""What the database says of itself."""

import sqlalchemy as sa

from server.db.tables import columns

dataset = sa.Table(
    "dataset",
    columns.metadata,
    sa.Column("id", sa.BigInteger, nullable=False),
    sa.Column("singleton", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    columns.stamped("created_at"),
)
schema_compatibility = sa.Table(
    "schema_compatibility",
    columns.metadata,
    sa.Column("singleton", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("compatible_from", sa.Integer, nullable=False),
)
