"""Organisations and what is theirs: sites, doors, spots, devices, and where these stand."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSTZRANGE

from server.db.tables import columns

organisations = sa.Table(
    "organisations",
    columns.metadata,
    columns.row_id(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    columns.stamped("created_at"),
    sa.Column("enrolment", sa.Text, nullable=False, server_default=sa.text("'allow-list'::text")),
    sa.Column("clones", sa.Text, nullable=False, server_default=sa.text("'report'::text")),
    sa.Column("calendar", sa.Text, nullable=False, server_default=sa.text("'iso'::text")),
    sa.Column("calendar_month", sa.SmallInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("calendar_weekday", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
)
regions = sa.Table(
    "regions",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
)
sites = sa.Table(
    "sites",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False, server_default=sa.text("'EUR'::text")),
    sa.Column("opens_on", sa.Date),
    sa.Column("closes_on", sa.Date),
    columns.stamped("created_at"),
    columns.row_of("region_id", "regions", nullable=True),
    columns.or_empty("address"),
)
opening_hours = sa.Table(
    "opening_hours",
    columns.metadata,
    columns.organisation(),
    columns.row_of("site_id", "sites", primary_key=True),
    sa.Column("weekday", sa.SmallInteger, primary_key=True),
    sa.Column("opens", sa.SmallInteger, primary_key=True),
    sa.Column("closes", sa.SmallInteger, nullable=False),
)
opening_exceptions = sa.Table(
    "opening_exceptions",
    columns.metadata,
    columns.organisation(),
    columns.row_of("site_id", "sites"),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("opens", sa.SmallInteger),
    sa.Column("closes", sa.SmallInteger),
    columns.or_empty("note"),
)
doors = sa.Table(
    "doors",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("site_id", "sites"),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    columns.row_of("behind_id", "doors", nullable=True),
)
spots = sa.Table(
    "spots",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("site_id", "sites"),
    columns.row_of("door_id", "doors", nullable=True),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    columns.stamped("created_at"),
)
mountings = sa.Table(
    "mountings",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("spot_id", "spots"),
    columns.always(),
    sa.Column("purpose", sa.Text, nullable=False, server_default=sa.text("'entrance'::text")),
    sa.Column("height_cm", sa.SmallInteger),
    columns.or_empty("note"),
    columns.stamped("created_at"),
)
calibrations = sa.Table(
    "calibrations",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("spot_id", "spots"),
    sa.Column("line", sa.SmallInteger, nullable=False),
    columns.always(),
    sa.Column("reversed", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("factor", sa.Numeric(6, 4), nullable=False, server_default=sa.text("1")),
    columns.or_empty("reason"),
    columns.stamped("created_at"),
)
devices = sa.Table(
    "devices",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    columns.or_empty("serial"),
    columns.or_empty("model"),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'claimed'::text")),
    sa.Column("assignment_version", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("enrolled_at", columns.INSTANT),
    columns.stamped("created_at"),
    sa.Column(
        "admitted",
        sa.Boolean,
        sa.Computed(
            "(state <> ALL (ARRAY['suspended'::text, 'quarantined'::text, "
            "'returned'::text, 'retired'::text]))"
        ),
        nullable=False,
    ),
    columns.or_empty("hardware_revision"),
    sa.Column("setup_sha256", sa.LargeBinary),
    columns.row_of("intended_site_id", "sites", nullable=True),
    sa.Column("allowed_until", columns.INSTANT),
    columns.stamped("state_since"),
    sa.Column("state_before", sa.Text),
    sa.Column("asked_at", columns.INSTANT),
    columns.or_empty("asked"),
    sa.Column("greeted_at", columns.INSTANT),
)
assignments = sa.Table(
    "assignments",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("device_id", "devices"),
    columns.row_of("spot_id", "spots"),
    sa.Column("valid", TSTZRANGE, nullable=False),
    columns.stamped("created_at"),
)
backfill_grants = sa.Table(
    "backfill_grants",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("spot_id", "spots"),
    sa.Column("valid", TSTZRANGE, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("granted_by", sa.Text, nullable=False),
    columns.stamped("created_at"),
)
