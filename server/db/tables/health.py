"""How devices are, what happened to them, and whether anybody can tell."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

presences = sa.Table(
    "presences",
    columns.metadata,
    columns.row_of("device_id", "devices", primary_key=True),
    columns.organisation(),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'never seen'::text")),
    columns.stamped("since"),
    sa.Column("session", sa.Text, nullable=False, server_default=sa.text("'none'::text")),
    sa.Column("epoch", sa.BigInteger),
    sa.Column("session_at", columns.INSTANT),
    columns.or_empty("reason"),
    sa.Column("until", columns.INSTANT),
    sa.Column(
        "closed", sa.ARRAY(sa.BigInteger), nullable=False, server_default=sa.text("'{}'::bigint[]")
    ),
    sa.Column("heartbeat_at", columns.INSTANT),
    sa.Column("data_at", columns.INSTANT),
    sa.Column("due_at", columns.INSTANT),
    sa.Column("noted_at", columns.INSTANT),
    sa.Column("judged_at", columns.INSTANT),
    sa.Column("heartbeat_s", sa.Integer, nullable=False, server_default=sa.text("2700")),
    sa.Column("data_s", sa.Integer, nullable=False, server_default=sa.text("5400")),
    columns.or_empty("agent"),
    sa.Column("boot_id", sa.BigInteger),
    sa.Column("ordinal", sa.BigInteger),
)
device_events = sa.Table(
    "device_events",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("device_id", "devices"),
    sa.Column("at", columns.INSTANT, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger),
    columns.or_empty("state"),
    columns.or_empty("reason"),
    sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
)
platform = sa.Table(
    "platform",
    columns.metadata,
    sa.Column("singleton", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    sa.Column("watermark", columns.INSTANT),
    sa.Column("moved_at", columns.INSTANT),
    sa.Column("broker_since", columns.INSTANT),
    sa.Column("broker_seen", columns.INSTANT),
)
platform_unknown = sa.Table(
    "platform_unknown",
    columns.metadata,
    columns.row_id(),
    sa.Column("since", columns.INSTANT, nullable=False),
    sa.Column("until", columns.INSTANT),
    sa.Column("cause", sa.Text, nullable=False),
)
