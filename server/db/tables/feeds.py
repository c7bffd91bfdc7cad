"""What others follow: the feed of changes, webhooks, what was delivered, logins of BI tools."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSONB

from server.db.tables import columns

changes = sa.Table(
    "changes",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    sa.Column(
        "dataset", sa.BigInteger, nullable=False, server_default=sa.text("current_dataset()")
    ),
    sa.Column(
        "xid",
        sa.BigInteger,
        nullable=False,
        server_default=sa.text("((pg_current_xact_id())::text)::bigint"),
    ),
    columns.organisation(),
    columns.stamped("at"),
    sa.Column("kind", sa.Text, nullable=False),
    columns.row_of("site_id", "sites", nullable=True),
    columns.row_of("spot_id", "spots", nullable=True),
    sa.Column("detail", JSONB, nullable=False),
)
webhooks = sa.Table(
    "webhooks",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("kinds", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
    sa.Column("secret_sealed", BYTEA, nullable=False),
    sa.Column("created_at", columns.INSTANT, nullable=False),
    sa.Column("place_dataset", sa.BigInteger, nullable=False),
    sa.Column("place_xid", sa.BigInteger, nullable=False),
    sa.Column("place_id", sa.BigInteger, nullable=False),
    sa.Column("place_at", columns.INSTANT, nullable=False),
    sa.Column("failing_since", columns.INSTANT),
    sa.Column("disabled_at", columns.INSTANT),
    columns.or_empty("disabled"),
)
deliveries = sa.Table(
    "deliveries",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("webhook_id", "webhooks"),
    sa.Column("change_id", sa.BigInteger, sa.ForeignKey("changes.id"), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("status", sa.SmallInteger),
    columns.or_empty("trouble"),
    sa.Column("queued_at", columns.INSTANT, nullable=False),
    sa.Column("next_at", columns.INSTANT),
    sa.Column("delivered_at", columns.INSTANT),
    sa.Column("dead_at", columns.INSTANT),
)
bi_logins = sa.Table(
    "bi_logins",
    columns.metadata,
    sa.Column("role", sa.Text, primary_key=True),
    columns.organisation(),
    columns.or_empty("note"),
    sa.Column("created_at", columns.INSTANT, nullable=False),
)
