"""What the misuse filter leaves of presses, alerts of dissatisfaction, and what is then done."""

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    Double,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables.columns import (
    INSTANT,
    answer,
    metadata,
    or_empty,
    organisation,
    ref,
    row_id,
    row_of,
)

_BY_REASON = ("kept", "repeated", "children", "stuck", "closed")


def _filtered() -> list[Column[int]]:
    return [
        Column("questionnaire", BigInteger, nullable=False),
        Column("spot", Integer, nullable=False),
        *(Column(name, Integer, nullable=False) for name in _BY_REASON),
        Column("filter_version", SmallInteger, nullable=False),
        *answer(),
    ]


responses_15m = Table(
    "responses_15m", metadata, Column("bucket", INSTANT, nullable=False), *_filtered()
)
responses_day = Table("responses_day", metadata, Column("day", Date, nullable=False), *_filtered())
responses_dirty = Table(
    "responses_dirty",
    metadata,
    row_id(BigInteger),
    Column("spot", Integer, nullable=False),
    Column("from_at", INSTANT, nullable=False),
    Column("until_at", INSTANT, nullable=False),
)
alarm_settings = Table(
    "alarm_settings",
    metadata,
    row_of("organisation_id", "organisations", primary_key=True),
    Column("false_alarms_per_week", Double(), nullable=False),
)
alarm_watch = Table(
    "alarm_watch",
    metadata,
    row_of("spot_id", "spots", primary_key=True),
    Column("fresh_from", INSTANT),
    Column("looked_at", INSTANT, nullable=False),
)
opinion_alerts = Table(
    "opinion_alerts",
    metadata,
    row_id(),
    organisation(),
    ref(),
    row_of("site_id", "sites"),
    row_of("spot_id", "spots"),
    Column("cause", Text, nullable=False),
    Column("questionnaire", BigInteger, nullable=False),
    Column("question", SmallInteger, nullable=False),
    Column("raised_at", INSTANT, nullable=False),
    Column("since", INSTANT, nullable=False),
    Column("n", Integer, nullable=False),
    Column("bad", Integer, nullable=False),
    Column("expected", Double(), nullable=False),
    Column("p", Double(), nullable=False),
    Column("false_alarms_per_week", Double(), nullable=False),
    Column("filter_version", SmallInteger, nullable=False),
    or_empty("assignee"),
    Column("acknowledged_at", INSTANT),
    or_empty("outcome"),
    Column("done_at", INSTANT),
)
touchpoints = Table(
    "touchpoints",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("name", Text, nullable=False),
)
actions = Table(
    "actions",
    metadata,
    row_id(),
    organisation(),
    ref(),
    row_of("site_id", "sites"),
    row_of("touchpoint_id", "touchpoints"),
    row_of("alert_id", "opinion_alerts", nullable=True),
    Column("title", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("due_on", Date, nullable=False),
    Column("remeasure_on", Date, nullable=False),
    Column("done_on", Date),
    Column("told", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("published_at", INSTANT),
    Column("made_at", INSTANT, nullable=False),
    Column("closed_at", INSTANT),
    Column("comparison", JSONB),
)
