"""What is wrong, what it is part of, and who is told."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, REAL

from server.db.tables import columns


def _owner() -> sa.Column[int]:
    """Whose it is; the platform's is nobody's."""
    return columns.row_of("organisation_id", "organisations", nullable=True)


def _subject() -> list[sa.Column[Any]]:
    """What is wrong with what."""
    return [
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("subject_id", sa.Integer, nullable=False),
        sa.Column("condition", sa.Text, nullable=False),
    ]


def _place() -> list[sa.Column[int]]:
    """Where that is."""
    return [
        columns.row_of("site_id", "sites", nullable=True),
        columns.row_of("device_id", "devices", nullable=True),
        columns.row_of("spot_id", "spots", nullable=True),
    ]


def _json(name: str) -> sa.Column[Any]:
    return sa.Column(name, JSONB, nullable=False, server_default=sa.text("'{}'::jsonb"))


def _affected() -> list[sa.Column[Any]]:
    return [
        sa.Column("affected_from", columns.INSTANT),
        sa.Column("affected_until", columns.INSTANT),
    ]


def _incident(*, nullable: bool = False) -> sa.Column[int]:
    return sa.Column("incident_id", sa.BigInteger, sa.ForeignKey("incidents.id"), nullable=nullable)


standings = sa.Table(
    "standings",
    columns.metadata,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("subject_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("condition", sa.Text, primary_key=True),
    _owner(),
    columns.row_of("site_id", "sites", nullable=True),
    sa.Column("standing", sa.Text, nullable=False),
    sa.Column("judged_at", columns.INSTANT, nullable=False),
    sa.Column("noted_at", columns.INSTANT, nullable=False),
    sa.Column("from_at", columns.INSTANT, nullable=False),
    sa.Column("since", columns.INSTANT),
    sa.Column("cleared", sa.Boolean, nullable=False),
    sa.Column(
        "fired",
        sa.ARRAY(columns.INSTANT),
        nullable=False,
        server_default=sa.text("'{}'::timestamp with time zone[]"),
    ),
    sa.Column("episode_id", sa.BigInteger),
    _json("evidence"),
    *_affected(),
    sa.Column("due_at", columns.INSTANT),
)
incidents = sa.Table(
    "incidents",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    _owner(),
    columns.ref(),
    sa.Column("key", sa.Text, nullable=False),
    *_subject(),
    sa.Column("severity", sa.Text, nullable=False),
    *_place(),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'open'::text")),
    sa.Column("since", columns.INSTANT, nullable=False),
    sa.Column("opened_at", columns.INSTANT, nullable=False),
    sa.Column("ended_at", columns.INSTANT),
    sa.Column("merged_into", sa.BigInteger, sa.ForeignKey("incidents.id")),
    sa.Column("ready_at", columns.INSTANT, nullable=False),
    sa.Column("told_at", columns.INSTANT),
    sa.Column(
        "told", sa.ARRAY(sa.BigInteger), nullable=False, server_default=sa.text("'{}'::bigint[]")
    ),
    sa.Column("steps", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("look_at", columns.INSTANT),
    columns.or_empty("decided"),
    columns.or_empty("owner"),
    sa.Column("due_at", columns.INSTANT),
    sa.Column("stake", sa.Double, nullable=False, server_default=sa.text("0")),
    _json("stake_of"),
)
episodes = sa.Table(
    "episodes",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    _owner(),
    _incident(nullable=True),
    *_subject(),
    *_place(),
    sa.Column("since", columns.INSTANT, nullable=False),
    sa.Column("opened_at", columns.INSTANT, nullable=False),
    sa.Column("resolved_at", columns.INSTANT),
    columns.or_empty("resolved"),
    sa.Column("times", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("held", sa.Boolean, nullable=False, server_default=sa.text("false")),
    columns.or_empty("suppressed"),
    columns.or_empty("suppressed_by"),
    sa.Column("suppressed_until", columns.INSTANT),
    columns.or_empty("acknowledged_by"),
    sa.Column("acknowledged_at", columns.INSTANT),
    sa.Column("acknowledged_until", columns.INSTANT),
    _json("evidence"),
    *_affected(),
)
incident_decisions = sa.Table(
    "incident_decisions",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    _owner(),
    _incident(),
    sa.Column("at", columns.INSTANT, nullable=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    columns.or_empty("about"),
    sa.Column("until", columns.INSTANT),
    _json("detail"),
)
incident_comments = sa.Table(
    "incident_comments",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    _incident(),
    sa.Column("at", columns.INSTANT, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("words", sa.Text, nullable=False),
)
health_rules = sa.Table(
    "health_rules",
    columns.metadata,
    columns.row_of("organisation_id", "organisations", primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", JSONB, nullable=False),
    sa.Column("made_at", columns.INSTANT, nullable=False),
    sa.Column("made_by", sa.Text, nullable=False),
)
health_windows = sa.Table(
    "health_windows",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    columns.row_of("region_id", "regions", nullable=True),
    columns.row_of("site_id", "sites", nullable=True),
    columns.row_of("device_id", "devices", nullable=True),
    sa.Column("starts_at", columns.INSTANT, nullable=False),
    sa.Column("ends_at", columns.INSTANT, nullable=False),
    sa.Column("ended_at", columns.INSTANT),
    columns.or_empty("ended_by"),
)
health_contacts = sa.Table(
    "health_contacts",
    columns.metadata,
    columns.row_id(),
    _owner(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("weekdays", sa.ARRAY(sa.SmallInteger), nullable=False),
    sa.Column("from_min", sa.SmallInteger, nullable=False),
    sa.Column("until_min", sa.SmallInteger, nullable=False),
    sa.Column("digest", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("created_at", columns.INSTANT, nullable=False),
)
notices = sa.Table(
    "notices",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    _owner(),
    _incident(nullable=True),
    columns.row_of("contact_id", "health_contacts"),
    sa.Column("dedupe", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("queued_at", columns.INSTANT, nullable=False),
    sa.Column("next_at", columns.INSTANT),
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    columns.or_empty("trouble"),
    sa.Column("sent_at", columns.INSTANT),
    sa.Column("dead_at", columns.INSTANT),
)
usual_visits = sa.Table(
    "usual_visits",
    columns.metadata,
    columns.row_of("spot_id", "spots", primary_key=True),
    columns.organisation(),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("starts_s", sa.ARRAY(sa.BigInteger), nullable=False),
    sa.Column("visits", sa.ARRAY(REAL), nullable=False),
)
