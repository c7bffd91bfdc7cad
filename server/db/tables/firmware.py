"""New versions on their way to devices: releases, rollouts, executions, freezes."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns


def _object(name: str) -> sa.Column[Any]:
    return sa.Column(name, JSONB, nullable=False, server_default=sa.text("'{}'::jsonb"))


def _number(name: str, kind: type[sa.Integer] = sa.Integer, first: int = 0) -> sa.Column[int]:
    return sa.Column(name, kind, nullable=False, server_default=sa.text(str(first)))


releases = sa.Table(
    "releases",
    columns.metadata,
    columns.row_id(),
    columns.ref(),
    sa.Column("component", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("floor", sa.Text, nullable=False),
    sa.Column("requires", sa.Text),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("hardware", sa.ARRAY(sa.Text), nullable=False),
    columns.or_empty("notes"),
    sa.Column("published_at", columns.INSTANT, nullable=False),
    sa.Column("withdrawn_at", columns.INSTANT),
)
bundles = sa.Table(
    "bundles",
    columns.metadata,
    columns.row_id(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("releases", sa.ARRAY(sa.Integer), nullable=False),
    sa.Column("created_at", columns.INSTANT, nullable=False),
)
rollouts = sa.Table(
    "rollouts",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    columns.row_of("bundle_id", "bundles", nullable=True),
    _object("content"),
    _number("bytes", sa.BigInteger),
    sa.Column("policy", JSONB, nullable=False),
    _object("plan"),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'draft'::text")),
    sa.Column("since", columns.INSTANT, nullable=False),
    columns.or_empty("reason"),
    _number("epoch"),
    sa.Column("revert", sa.Text, nullable=False, server_default=sa.text("'keep'::text")),
    _number("devices"),
    sa.Column("author", sa.Text, nullable=False),
    columns.or_empty("approver"),
    sa.Column("approved_at", columns.INSTANT),
    sa.Column("starts_at", columns.INSTANT),
    sa.Column("due_at", columns.INSTANT),
    sa.Column("lease_until", columns.INSTANT),
    _number("fence", sa.BigInteger),
    sa.Column("tokens", sa.Double, nullable=False, server_default=sa.text("0")),
    sa.Column("tokens_at", columns.INSTANT),
    sa.Column("health_at", columns.INSTANT),
    _object("counted"),
    sa.Column("counted_at", columns.INSTANT),
    sa.Column("joiners_at", columns.INSTANT),
    columns.row_of("reverses", "rollouts", nullable=True),
)
rollout_events = sa.Table(
    "rollout_events",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("rollout_id", "rollouts"),
    sa.Column("at", columns.INSTANT, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    columns.or_empty("reason"),
    sa.Column("counters", JSONB, nullable=False),
    _object("detail"),
)
waves = sa.Table(
    "waves",
    columns.metadata,
    columns.row_of("rollout_id", "rollouts", primary_key=True),
    sa.Column("number", sa.SmallInteger, primary_key=True, autoincrement=False),
    columns.organisation(),
    sa.Column("kind", sa.Text, nullable=False, server_default=sa.text("'wave'::text")),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'pending'::text")),
    sa.Column("opened_at", columns.INSTANT),
    sa.Column("met_at", columns.INSTANT),
    _number("size"),
    _object("total"),
    _object("baseline"),
)
executions = sa.Table(
    "executions",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.ref(),
    columns.row_of("rollout_id", "rollouts"),
    sa.Column("wave", sa.SmallInteger, nullable=False),
    sa.Column("pool", sa.SmallInteger, nullable=False),
    columns.row_of("device_id", "devices"),
    columns.row_of("site_id", "sites", nullable=True),
    columns.row_of("spot_id", "spots", nullable=True),
    columns.row_of("door_id", "doors", nullable=True),
    columns.row_of("region_id", "regions", nullable=True),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'planned'::text")),
    _number("attempt", first=1),
    _number("seq"),
    sa.Column("attempted", sa.Boolean, nullable=False, server_default=sa.text("false")),
    _number("epoch"),
    sa.Column("due_at", columns.INSTANT),
    sa.Column("offered_at", columns.INSTANT),
    sa.Column("accepted_at", columns.INSTANT),
    sa.Column("phase_at", columns.INSTANT),
    sa.Column("deferred_at", columns.INSTANT),
    sa.Column("ended_at", columns.INSTANT),
    columns.or_empty("code"),
    columns.or_empty("class"),
    _number("bytes", sa.BigInteger),
    _object("tries"),
    sa.Column("releases", sa.ARRAY(sa.Integer)),
    _object("from_versions"),
    columns.or_empty("excluded"),
    sa.Column("assigned_until", columns.INSTANT),
)
execution_reports = sa.Table(
    "execution_reports",
    columns.metadata,
    sa.Column("execution_id", sa.BigInteger, sa.ForeignKey("executions.id"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    columns.organisation(),
    sa.Column("phase", sa.Text, nullable=False),
    columns.or_empty("code"),
    columns.or_empty("class"),
    _number("bytes", sa.BigInteger),
    sa.Column("at", columns.INSTANT),
    sa.Column("heard_at", columns.INSTANT, nullable=False),
    _object("detail"),
)
device_firmware = sa.Table(
    "device_firmware",
    columns.metadata,
    columns.row_of("device_id", "devices", primary_key=True),
    columns.organisation(),
    columns.or_empty("hardware"),
    _object("components"),
    _object("floors"),
    columns.or_empty("slot"),
    columns.or_empty("nonce_given"),
    columns.or_empty("nonce_asked"),
    sa.Column("report", sa.LargeBinary),
    sa.Column("reported_at", columns.INSTANT),
)
freezes = sa.Table(
    "freezes",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("starts_at", columns.INSTANT, nullable=False),
    sa.Column("ends_at", columns.INSTANT, nullable=False),
    columns.or_empty("sites"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("created_at", columns.INSTANT, nullable=False),
    sa.Column("ended_at", columns.INSTANT),
    columns.or_empty("ended_by"),
)
