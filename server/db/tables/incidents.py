"""What is wrong, what it is part of, and who is told."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    ForeignKey,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL

from server.db.tables.columns import (
    INSTANT,
    metadata,
    or_empty,
    organisation,
    ref,
    row_id,
    row_of,
)


def _owner() -> Column[int]:
    """Whose it is; the platform's is nobody's."""
    return row_of("organisation_id", "organisations", nullable=True)


def _subject() -> list[Column[Any]]:
    """What is wrong with what."""
    return [
        Column("subject", Text, nullable=False),
        Column("subject_id", Integer, nullable=False),
        Column("condition", Text, nullable=False),
    ]


def _place() -> list[Column[int]]:
    """Where that is."""
    return [
        row_of("site_id", "sites", nullable=True),
        row_of("device_id", "devices", nullable=True),
        row_of("spot_id", "spots", nullable=True),
    ]


def _json(name: str) -> Column[Any]:
    return Column(name, JSONB, nullable=False, server_default=text("'{}'::jsonb"))


def _affected() -> list[Column[Any]]:
    return [Column("affected_from", INSTANT), Column("affected_until", INSTANT)]


def _incident(*, nullable: bool = False) -> Column[int]:
    return Column("incident_id", BigInteger, ForeignKey("incidents.id"), nullable=nullable)


standings = Table(
    "standings",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("subject_id", Integer, primary_key=True, autoincrement=False),
    Column("condition", Text, primary_key=True),
    _owner(),
    row_of("site_id", "sites", nullable=True),
    Column("standing", Text, nullable=False),
    Column("judged_at", INSTANT, nullable=False),
    Column("noted_at", INSTANT, nullable=False),
    Column("from_at", INSTANT, nullable=False),
    Column("since", INSTANT),
    Column("cleared", Boolean, nullable=False),
    Column(
        "fired",
        ARRAY(INSTANT),
        nullable=False,
        server_default=text("'{}'::timestamp with time zone[]"),
    ),
    Column("episode_id", BigInteger),
    _json("evidence"),
    *_affected(),
    Column("due_at", INSTANT),
)
incidents = Table(
    "incidents",
    metadata,
    row_id(BigInteger),
    _owner(),
    ref(),
    Column("key", Text, nullable=False),
    *_subject(),
    Column("severity", Text, nullable=False),
    *_place(),
    Column("state", Text, nullable=False, server_default=text("'open'::text")),
    Column("since", INSTANT, nullable=False),
    Column("opened_at", INSTANT, nullable=False),
    Column("ended_at", INSTANT),
    Column("merged_into", BigInteger, ForeignKey("incidents.id")),
    Column("ready_at", INSTANT, nullable=False),
    Column("told_at", INSTANT),
    Column("told", ARRAY(BigInteger), nullable=False, server_default=text("'{}'::bigint[]")),
    Column("steps", Integer, nullable=False, server_default=text("0")),
    Column("look_at", INSTANT),
    or_empty("decided"),
    or_empty("owner"),
    Column("due_at", INSTANT),
    Column("stake", Double, nullable=False, server_default=text("0")),
    _json("stake_of"),
)
episodes = Table(
    "episodes",
    metadata,
    row_id(BigInteger),
    _owner(),
    _incident(nullable=True),
    *_subject(),
    *_place(),
    Column("since", INSTANT, nullable=False),
    Column("opened_at", INSTANT, nullable=False),
    Column("resolved_at", INSTANT),
    or_empty("resolved"),
    Column("times", Integer, nullable=False, server_default=text("1")),
    Column("held", Boolean, nullable=False, server_default=text("false")),
    or_empty("suppressed"),
    or_empty("suppressed_by"),
    Column("suppressed_until", INSTANT),
    or_empty("acknowledged_by"),
    Column("acknowledged_at", INSTANT),
    Column("acknowledged_until", INSTANT),
    _json("evidence"),
    *_affected(),
)
incident_decisions = Table(
    "incident_decisions",
    metadata,
    row_id(BigInteger),
    _owner(),
    _incident(),
    Column("at", INSTANT, nullable=False),
    Column("decision", Text, nullable=False),
    Column("why", Text, nullable=False),
    or_empty("about"),
    Column("until", INSTANT),
    _json("detail"),
)
incident_comments = Table(
    "incident_comments",
    metadata,
    row_id(BigInteger),
    organisation(),
    _incident(),
    Column("at", INSTANT, nullable=False),
    Column("author", Text, nullable=False),
    Column("words", Text, nullable=False),
)
health_rules = Table(
    "health_rules",
    metadata,
    row_of("organisation_id", "organisations", primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("content", JSONB, nullable=False),
    Column("made_at", INSTANT, nullable=False),
    Column("made_by", Text, nullable=False),
)
health_windows = Table(
    "health_windows",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("author", Text, nullable=False),
    row_of("region_id", "regions", nullable=True),
    row_of("site_id", "sites", nullable=True),
    row_of("device_id", "devices", nullable=True),
    Column("starts_at", INSTANT, nullable=False),
    Column("ends_at", INSTANT, nullable=False),
    Column("ended_at", INSTANT),
    or_empty("ended_by"),
)
health_contacts = Table(
    "health_contacts",
    metadata,
    row_id(),
    _owner(),
    ref(),
    Column("name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("weekdays", ARRAY(SmallInteger), nullable=False),
    Column("from_min", SmallInteger, nullable=False),
    Column("until_min", SmallInteger, nullable=False),
    Column("digest", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", INSTANT, nullable=False),
)
notices = Table(
    "notices",
    metadata,
    row_id(BigInteger),
    _owner(),
    _incident(nullable=True),
    row_of("contact_id", "health_contacts"),
    Column("dedupe", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("queued_at", INSTANT, nullable=False),
    Column("next_at", INSTANT),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    or_empty("trouble"),
    Column("sent_at", INSTANT),
    Column("dead_at", INSTANT),
)
usual_visits = Table(
    "usual_visits",
    metadata,
    row_of("spot_id", "spots", primary_key=True),
    organisation(),
    Column("day", Date, nullable=False),
    Column("starts_s", ARRAY(BigInteger), nullable=False),
    Column("visits", ARRAY(REAL), nullable=False),
)
