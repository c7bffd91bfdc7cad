"""Devices that somebody has named: by a filter, or one by one."""

from sqlalchemy import Column, Table, Text

from server.db.tables.columns import INSTANT, metadata, organisation, ref, row_id, row_of

segments = Table(
    "segments",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("name", Text, nullable=False),
    Column("filter", Text, nullable=False),
    Column("follows", Text, nullable=False),
    Column("created_at", INSTANT, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("taken_at", INSTANT),
)
segment_devices = Table(
    "segment_devices",
    metadata,
    row_of("segment_id", "segments", primary_key=True),
    row_of("device_id", "devices", primary_key=True),
    organisation(),
)
