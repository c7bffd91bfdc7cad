"""Experiments: their designs, draws, decisions, and the register that they make."""

from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    Date,
    Double,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables.columns import INSTANT, metadata, or_empty, organisation, ref, row_id, row_of

experiments = Table(
    "experiments",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("name", Text, nullable=False),
    or_empty("hypothesis"),
    Column("metrics", ARRAY(Text), nullable=False),
    Column("starts_on", Date, nullable=False),
    Column("weeks", SmallInteger, nullable=False),
    Column("pre_weeks", SmallInteger, nullable=False),
    Column("by_region", Boolean, nullable=False, server_default=text("false")),
    Column("planned", JSONB, nullable=False),
    Column("created_at", INSTANT, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("sealed_at", INSTANT),
    Column("design", Text),
    Column("seed", LargeBinary),
    Column("commitment", Text),
    Column("treated", ARRAY(SmallInteger)),
    Column("decided_at", INSTANT),
    Column("decision", Text),
    or_empty("note"),
    Column("result", JSONB),
    Column("snapshot", Text),
    Column("snapshot_sha256", Text),
    Column("archived_at", INSTANT),
    Column("revealed", LargeBinary),
)
experiment_pairs = Table(
    "experiment_pairs",
    metadata,
    row_of("experiment_id", "experiments", primary_key=True),
    organisation(),
    Column("number", SmallInteger, primary_key=True),
    row_of("first_site_id", "sites"),
    row_of("second_site_id", "sites"),
    Column("distance", Double, nullable=False),
)
