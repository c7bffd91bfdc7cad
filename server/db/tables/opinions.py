"""What the misuse filter leaves of presses, alerts of dissatisfaction, and what is then done."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

_BY_REASON = ("kept", "repeated", "children", "stuck", "closed")


def _filtered() -> list[sa.Column[int]]:
    return [
        sa.Column("questionnaire", sa.BigInteger, nullable=False),
        sa.Column("spot", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in _BY_REASON),
        sa.Column("filter_version", sa.SmallInteger, nullable=False),
        *columns.answer(),
    ]


responses_15m = sa.Table(
    "responses_15m",
    columns.metadata,
    sa.Column("bucket", columns.INSTANT, nullable=False),
    *_filtered(),
)
responses_day = sa.Table(
    "responses_day", columns.metadata, sa.Column("day", sa.Date, nullable=False), *_filtered()
)
responses_dirty = sa.Table(
    "responses_dirty",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    sa.Column("spot", sa.Integer, nullable=False),
    sa.Column("from_at", columns.INSTANT, nullable=False),
    sa.Column("until_at", columns.INSTANT, nullable=False),
)
alarm_settings = sa.Table(
    "alarm_settings",
    columns.metadata,
    columns.row_of("organisation_id", "organisations", primary_key=True),
    sa.Column("false_alarms_per_week", sa.Double(), nullable=False),
)
alarm_watch = sa.Table(
    "alarm_watch",
    columns.metadata,
    columns.row_of("spot_id", "spots", primary_key=True),
    sa.Column("fresh_from", columns.INSTANT),
    sa.Column("looked_at", columns.INSTANT, nullable=False),
)
opinion_alerts = sa.Table(
    "opinion_alerts",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("site_id", "sites"),
    columns.row_of("spot_id", "spots"),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("questionnaire", sa.BigInteger, nullable=False),
    sa.Column("question", sa.SmallInteger, nullable=False),
    sa.Column("raised_at", columns.INSTANT, nullable=False),
    sa.Column("since", columns.INSTANT, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("bad", sa.Integer, nullable=False),
    sa.Column("expected", sa.Double(), nullable=False),
    sa.Column("p", sa.Double(), nullable=False),
    sa.Column("false_alarms_per_week", sa.Double(), nullable=False),
    sa.Column("filter_version", sa.SmallInteger, nullable=False),
    columns.or_empty("assignee"),
    sa.Column("acknowledged_at", columns.INSTANT),
    columns.or_empty("outcome"),
    sa.Column("done_at", columns.INSTANT),
)
touchpoints = sa.Table(
    "touchpoints",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
)
actions = sa.Table(
    "actions",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("site_id", "sites"),
    columns.row_of("touchpoint_id", "touchpoints"),
    columns.row_of("alert_id", "opinion_alerts", nullable=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("due_on", sa.Date, nullable=False),
    sa.Column("remeasure_on", sa.Date, nullable=False),
    sa.Column("done_on", sa.Date),
    sa.Column("told", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    sa.Column("published_at", columns.INSTANT),
    sa.Column("made_at", columns.INSTANT, nullable=False),
    sa.Column("closed_at", columns.INSTANT),
    sa.Column("comparison", JSONB),
)
