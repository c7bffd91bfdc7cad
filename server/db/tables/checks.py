"""Whether counts are right: what is looked at when, what was judged, what is masked and why."""

from sqlalchemy import BigInteger, Boolean, Column, Date, Integer, Table, Text, text
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

_NOTHING = text("'{}'::jsonb")

health_checks = Table(
    "health_checks",
    metadata,
    row_id(Integer),
    organisation(),
    row_of("site_id", "sites", nullable=True),
    row_of("device_id", "devices", nullable=True),
    stamped("due_at"),
    Column("looked_at", INSTANT),
    Column("daily_on", Date),
    Column("days", JSONB, nullable=False, server_default=_NOTHING),
)
judgements = Table(
    "judgements",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("site_id", "sites", nullable=True),
    row_of("device_id", "devices", nullable=True),
    row_of("spot_id", "spots", nullable=True),
    Column("condition", Text, nullable=False),
    Column("standing", Text, nullable=False),
    Column("firing", Boolean),
    Column("since", INSTANT, nullable=False),
    Column("evidence", JSONB, nullable=False, server_default=_NOTHING),
    Column("affected_from", INSTANT),
    Column("affected_until", INSTANT),
    Column("judged_at", INSTANT, nullable=False),
    Column("changed_at", INSTANT, nullable=False),
    Column("withdrawn_at", INSTANT),
    or_empty("withdrawn_by"),
    or_empty("withdrawn_why"),
)
masks = Table(
    "masks",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("spot_id", "spots"),
    Column("condition", Text, nullable=False),
    Column("from_at", INSTANT, nullable=False),
    Column("until_at", INSTANT),
    Column("set_at", INSTANT, nullable=False),
    Column("withdrawn_at", INSTANT),
)
