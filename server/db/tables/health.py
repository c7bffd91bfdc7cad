"""How devices are, what happened to them, and whether anybody can tell."""

from sqlalchemy import ARRAY, BigInteger, Boolean, Column, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables.columns import (
    INSTANT,
    metadata,
    or_empty,
    organisation,
    row_id,
    row_of,
    stamped,
)

presences = Table(
    "presences",
    metadata,
    row_of("device_id", "devices", primary_key=True),
    organisation(),
    Column("state", Text, nullable=False, server_default=text("'never seen'::text")),
    stamped("since"),
    Column("session", Text, nullable=False, server_default=text("'none'::text")),
    Column("epoch", BigInteger),
    Column("session_at", INSTANT),
    or_empty("reason"),
    Column("until", INSTANT),
    Column("closed", ARRAY(BigInteger), nullable=False, server_default=text("'{}'::bigint[]")),
    Column("heartbeat_at", INSTANT),
    Column("data_at", INSTANT),
    Column("due_at", INSTANT),
    Column("noted_at", INSTANT),
    Column("judged_at", INSTANT),
    Column("heartbeat_s", Integer, nullable=False, server_default=text("2700")),
    Column("data_s", Integer, nullable=False, server_default=text("5400")),
    or_empty("agent"),
    Column("boot_id", BigInteger),
    Column("ordinal", BigInteger),
)
device_events = Table(
    "device_events",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("device_id", "devices"),
    Column("at", INSTANT, nullable=False),
    Column("kind", Text, nullable=False),
    Column("epoch", BigInteger),
    or_empty("state"),
    or_empty("reason"),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
)
platform = Table(
    "platform",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("watermark", INSTANT),
    Column("moved_at", INSTANT),
    Column("broker_since", INSTANT),
    Column("broker_seen", INSTANT),
)
platform_unknown = Table(
    "platform_unknown",
    metadata,
    row_id(),
    Column("since", INSTANT, nullable=False),
    Column("until", INSTANT),
    Column("cause", Text, nullable=False),
)
