"""Organisations and what is theirs: sites, doors, spots, devices, and where these stand."""

from sqlalchemy import (
    Boolean,
    Column,
    Computed,
    Date,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import TSTZRANGE

from server.db.tables.columns import (
    INSTANT,
    always,
    metadata,
    or_empty,
    organisation,
    ref,
    row_id,
    row_of,
    stamped,
)

organisations = Table(
    "organisations",
    metadata,
    row_id(),
    ref(),
    Column("name", Text, nullable=False),
    stamped("created_at"),
    Column("enrolment", Text, nullable=False, server_default=text("'allow-list'::text")),
    Column("clones", Text, nullable=False, server_default=text("'report'::text")),
    Column("calendar", Text, nullable=False, server_default=text("'iso'::text")),
    Column("calendar_month", SmallInteger, nullable=False, server_default=text("1")),
    Column("calendar_weekday", SmallInteger, nullable=False, server_default=text("0")),
)
regions = Table(
    "regions",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("name", Text, nullable=False),
)
sites = Table(
    "sites",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("name", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("currency", Text, nullable=False, server_default=text("'EUR'::text")),
    Column("opens_on", Date),
    Column("closes_on", Date),
    stamped("created_at"),
    row_of("region_id", "regions", nullable=True),
    or_empty("address"),
)
opening_hours = Table(
    "opening_hours",
    metadata,
    organisation(),
    row_of("site_id", "sites", primary_key=True),
    Column("weekday", SmallInteger, primary_key=True),
    Column("opens", SmallInteger, primary_key=True),
    Column("closes", SmallInteger, nullable=False),
)
opening_exceptions = Table(
    "opening_exceptions",
    metadata,
    organisation(),
    row_of("site_id", "sites"),
    Column("day", Date, nullable=False),
    Column("opens", SmallInteger),
    Column("closes", SmallInteger),
    or_empty("note"),
)
doors = Table(
    "doors",
    metadata,
    row_id(),
    organisation(),
    row_of("site_id", "sites"),
    ref(),
    Column("name", Text, nullable=False),
    row_of("behind_id", "doors", nullable=True),
)
spots = Table(
    "spots",
    metadata,
    row_id(),
    organisation(),
    row_of("site_id", "sites"),
    row_of("door_id", "doors", nullable=True),
    ref(),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    stamped("created_at"),
)
mountings = Table(
    "mountings",
    metadata,
    row_id(),
    organisation(),
    row_of("spot_id", "spots"),
    always(),
    Column("purpose", Text, nullable=False, server_default=text("'entrance'::text")),
    Column("height_cm", SmallInteger),
    or_empty("note"),
    stamped("created_at"),
)
calibrations = Table(
    "calibrations",
    metadata,
    row_id(),
    organisation(),
    row_of("spot_id", "spots"),
    Column("line", SmallInteger, nullable=False),
    always(),
    Column("reversed", Boolean, nullable=False, server_default=text("false")),
    Column("factor", Numeric(6, 4), nullable=False, server_default=text("1")),
    or_empty("reason"),
    stamped("created_at"),
)
devices = Table(
    "devices",
    metadata,
    row_id(),
    organisation(),
    Column("device", Text, nullable=False),
    Column("kind", Text, nullable=False),
    or_empty("serial"),
    or_empty("model"),
    Column("state", Text, nullable=False, server_default=text("'claimed'::text")),
    Column("assignment_version", Integer, nullable=False, server_default=text("0")),
    Column("enrolled_at", INSTANT),
    stamped("created_at"),
    Column(
        "admitted",
        Boolean,
        Computed(
            "(state <> ALL (ARRAY['suspended'::text, 'quarantined'::text, "
            "'returned'::text, 'retired'::text]))"
        ),
        nullable=False,
    ),
    or_empty("hardware_revision"),
    Column("setup_sha256", LargeBinary),
    row_of("intended_site_id", "sites", nullable=True),
    Column("allowed_until", INSTANT),
    stamped("state_since"),
    Column("state_before", Text),
    Column("asked_at", INSTANT),
    or_empty("asked"),
    Column("greeted_at", INSTANT),
)
assignments = Table(
    "assignments",
    metadata,
    row_id(),
    organisation(),
    row_of("device_id", "devices"),
    row_of("spot_id", "spots"),
    Column("valid", TSTZRANGE, nullable=False),
    stamped("created_at"),
)
backfill_grants = Table(
    "backfill_grants",
    metadata,
    row_id(),
    organisation(),
    row_of("spot_id", "spots"),
    Column("valid", TSTZRANGE, nullable=False),
    Column("reason", Text, nullable=False),
    Column("granted_by", Text, nullable=False),
    stamped("created_at"),
)
