"""What devices have sent: boots with their cursors, readings, and what is missing or odd."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

boots = sa.Table(
    "boots",
    columns.metadata,
    columns.row_id(),
    columns.row_of("device_id", "devices"),
    sa.Column("boot_id", sa.BigInteger, nullable=False),
    sa.Column("ordinal", sa.BigInteger, nullable=False),
    sa.Column("next_seq", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("digest", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("stored_to", columns.INSTANT),
    sa.Column("quality", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("offset_ms", sa.BigInteger),
    columns.sums("totals", "0,0,0,0,0,0,0,0"),
    columns.sums("answers"),
    sa.Column("totals_open", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("assignment_version", sa.Integer, nullable=False, server_default=sa.text("0")),
    columns.stamped("first_seen"),
    sa.Column("last_stored", columns.INSTANT),
)
closed_boots = sa.Table(
    "closed_boots",
    columns.metadata,
    sa.Column("id", sa.Integer, nullable=False),
    columns.row_of("device_id", "devices", primary_key=True),
    sa.Column("boot_id", sa.BigInteger, primary_key=True),
    sa.Column("ordinal", sa.BigInteger, nullable=False),
    sa.Column("next_seq", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.BigInteger, nullable=False),
    sa.Column("stored_to", columns.INSTANT),
    sa.Column("first_seen", columns.INSTANT, nullable=False),
    sa.Column("offset_ms", sa.BigInteger),
    sa.Column("quality", sa.SmallInteger, nullable=False),
    sa.Column("totals_open", sa.Boolean, nullable=False),
    sa.Column("totals", sa.ARRAY(sa.BigInteger)),
    sa.Column("answers", sa.ARRAY(sa.BigInteger)),
)
undated_frames = sa.Table(
    "undated_frames",
    columns.metadata,
    columns.row_of("boot", "boots", primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    columns.stamped("received_at"),
    sa.Column("frame", sa.LargeBinary, nullable=False),
)
gaps = sa.Table(
    "gaps",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("device_id", "devices"),
    columns.row_of("boot", "boots"),
    columns.row_of("spot_id", "spots", nullable=True),
    sa.Column("from_seq", sa.BigInteger, nullable=False),
    sa.Column("to_seq", sa.BigInteger, nullable=False),
    sa.Column("from_at", columns.INSTANT),
    sa.Column("until_at", columns.INSTANT),
    sa.Column("reason", sa.Text, nullable=False),
    columns.sums("counts", "0,0,0,0,0,0,0,0"),
    columns.sums("answers"),
    columns.stamped("recorded_at"),
    sa.Column("filled_at", columns.INSTANT),
)
findings = sa.Table(
    "findings",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.stamped("at"),
    columns.row_of("device_id", "devices", nullable=True),
    sa.Column("boot", sa.Integer),
    sa.Column("seq", sa.BigInteger),
    sa.Column("finding", sa.Text, nullable=False),
    sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
)
readings = sa.Table(
    "readings",
    columns.metadata,
    sa.Column("time", columns.INSTANT, nullable=False),
    sa.Column("spot", sa.Integer, nullable=False),
    *columns.frame(),
    sa.Column("lead_ms", sa.Integer, nullable=False),
    sa.Column("span_ms", sa.Integer, nullable=False),
    sa.Column("line", sa.SmallInteger, nullable=False),
    sa.Column("interval_s", sa.SmallInteger, nullable=False),
    sa.Column("counts", sa.ARRAY(sa.SmallInteger), nullable=False),
)
presses = sa.Table(
    "presses",
    columns.metadata,
    sa.Column("time", columns.INSTANT, nullable=False),
    sa.Column("questionnaire", sa.BigInteger, nullable=False),
    sa.Column("spot", sa.Integer, nullable=False),
    *columns.frame(),
    sa.Column("visit", sa.Integer, nullable=False),
    *columns.answer(),
    sa.Column("source", sa.SmallInteger, nullable=False),
)
metric_names = sa.Table(
    "metric_names",
    columns.metadata,
    sa.Column("id", sa.SmallInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    columns.row_of("introduced_by", "devices", nullable=True),
)
device_metrics = sa.Table(
    "device_metrics",
    columns.metadata,
    sa.Column("time", columns.INSTANT, nullable=False),
    sa.Column("device", sa.Integer, nullable=False),
    *columns.frame(),
    sa.Column("metric", sa.SmallInteger, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
)
quarantine = sa.Table(
    "quarantine",
    columns.metadata,
    columns.stamped("received_at"),
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("boot", sa.Integer),
    sa.Column("seq", sa.BigInteger),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    columns.or_empty("detail"),
    sa.Column("frame", sa.LargeBinary, nullable=False),
    sa.Column("gap", sa.BigInteger),
    sa.Column("redriven_at", columns.INSTANT),
)
