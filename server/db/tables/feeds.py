"""What others follow: the feed of changes, webhooks, what was delivered, logins of BI tools."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import BYTEA, JSONB

from server.db.tables.columns import (
    INSTANT,
    metadata,
    or_empty,
    organisation,
    ref,
    row_id,
    row_of,
    stamped,
)

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
webhooks = Table(
    "webhooks",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("url", Text, nullable=False),
    Column("kinds", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("secret_sealed", BYTEA, nullable=False),
    Column("created_at", INSTANT, nullable=False),
    Column("place_dataset", BigInteger, nullable=False),
    Column("place_xid", BigInteger, nullable=False),
    Column("place_id", BigInteger, nullable=False),
    Column("place_at", INSTANT, nullable=False),
    Column("failing_since", INSTANT),
    Column("disabled_at", INSTANT),
    or_empty("disabled"),
)
deliveries = Table(
    "deliveries",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("webhook_id", "webhooks"),
    Column("change_id", BigInteger, ForeignKey("changes.id"), nullable=False),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("status", SmallInteger),
    or_empty("trouble"),
    Column("queued_at", INSTANT, nullable=False),
    Column("next_at", INSTANT),
    Column("delivered_at", INSTANT),
    Column("dead_at", INSTANT),
)
bi_logins = Table(
    "bi_logins",
    metadata,
    Column("role", Text, primary_key=True),
    organisation(),
    or_empty("note"),
    Column("created_at", INSTANT, nullable=False),
)
