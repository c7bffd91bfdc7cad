"""Devices that somebody has named: by a filter, or one by one."""

import sqlalchemy as sa

from server.db.tables import columns

segments = sa.Table(
    "segments",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("filter", sa.Text, nullable=False),
    sa.Column("follows", sa.Text, nullable=False),
    sa.Column("created_at", columns.INSTANT, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("taken_at", columns.INSTANT),
)
segment_devices = sa.Table(
    "segment_devices",
    columns.metadata,
    columns.row_of("segment_id", "segments", primary_key=True),
    columns.row_of("device_id", "devices", primary_key=True),
    columns.organisation(),
)
