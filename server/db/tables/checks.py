"""Whether counts are right: what is looked at when, what was judged, what is masked and why."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

_NOTHING = sa.text("'{}'::jsonb")

health_checks = sa.Table(
    "health_checks",
    columns.metadata,
    columns.row_id(sa.Integer),
    columns.organisation(),
    columns.row_of("site_id", "sites", nullable=True),
    columns.row_of("device_id", "devices", nullable=True),
    columns.stamped("due_at"),
    sa.Column("looked_at", columns.INSTANT),
    sa.Column("daily_on", sa.Date),
    sa.Column("days", JSONB, nullable=False, server_default=_NOTHING),
)
judgements = sa.Table(
    "judgements",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("site_id", "sites", nullable=True),
    columns.row_of("device_id", "devices", nullable=True),
    columns.row_of("spot_id", "spots", nullable=True),
    sa.Column("condition", sa.Text, nullable=False),
    sa.Column("standing", sa.Text, nullable=False),
    sa.Column("firing", sa.Boolean),
    sa.Column("since", columns.INSTANT, nullable=False),
    sa.Column("evidence", JSONB, nullable=False, server_default=_NOTHING),
    sa.Column("affected_from", columns.INSTANT),
    sa.Column("affected_until", columns.INSTANT),
    sa.Column("judged_at", columns.INSTANT, nullable=False),
    sa.Column("changed_at", columns.INSTANT, nullable=False),
    sa.Column("withdrawn_at", columns.INSTANT),
    columns.or_empty("withdrawn_by"),
    columns.or_empty("withdrawn_why"),
)
masks = sa.Table(
    "masks",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("spot_id", "spots"),
    sa.Column("condition", sa.Text, nullable=False),
    sa.Column("from_at", columns.INSTANT, nullable=False),
    sa.Column("until_at", columns.INSTANT),
    sa.Column("set_at", columns.INSTANT, nullable=False),
    sa.Column("withdrawn_at", columns.INSTANT),
)
