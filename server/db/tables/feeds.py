"""What others follow: the feed of changes."""

from sqlalchemy import BigInteger, Column, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables.columns import metadata, organisation, row_id, row_of, stamped

changes = Table(
    "changes",
    metadata,
    row_id(BigInteger),
    Column("dataset", BigInteger, nullable=False, server_default=text("current_dataset()")),
    Column(
        "xid",
        BigInteger,
        nullable=False,
        server_default=text("((pg_current_xact_id())::text)::bigint"),
    ),
    organisation(),
    stamped("at"),
    Column("kind", Text, nullable=False),
    row_of("site_id", "sites", nullable=True),
    row_of("spot_id", "spots", nullable=True),
    Column("detail", JSONB, nullable=False),
)
