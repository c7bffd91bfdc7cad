"""Experiments: their designs, draws, decisions, and the register that they make."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

experiments = sa.Table(
    "experiments",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    columns.or_empty("hypothesis"),
    sa.Column("metrics", sa.ARRAY(sa.Text), nullable=False),
    sa.Column("starts_on", sa.Date, nullable=False),
    sa.Column("weeks", sa.SmallInteger, nullable=False),
    sa.Column("pre_weeks", sa.SmallInteger, nullable=False),
    sa.Column("by_region", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("planned", JSONB, nullable=False),
    sa.Column("created_at", columns.INSTANT, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("sealed_at", columns.INSTANT),
    sa.Column("design", sa.Text),
    sa.Column("seed", sa.LargeBinary),
    sa.Column("commitment", sa.Text),
    sa.Column("treated", sa.ARRAY(sa.SmallInteger)),
    sa.Column("decided_at", columns.INSTANT),
    sa.Column("decision", sa.Text),
    columns.or_empty("note"),
    sa.Column("result", JSONB),
    sa.Column("snapshot", sa.Text),
    sa.Column("snapshot_sha256", sa.Text),
    sa.Column("archived_at", columns.INSTANT),
    sa.Column("revealed", sa.LargeBinary),
)
experiment_pairs = sa.Table(
    "experiment_pairs",
    columns.metadata,
    columns.row_of("experiment_id", "experiments", primary_key=True),
    columns.organisation(),
    sa.Column("number", sa.SmallInteger, primary_key=True),
    columns.row_of("first_site_id", "sites"),
    columns.row_of("second_site_id", "sites"),
    sa.Column("distance", sa.Double, nullable=False),
)
