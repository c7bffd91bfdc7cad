"""People counted by a person beside a counter."""

import sqlalchemy as sa

from server.db.tables import columns

recounts = sa.Table(
    "recounts",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("spot_id", "spots"),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("counted_by", sa.Text, nullable=False),
    sa.Column("recorded_by", sa.Text, nullable=False),
    sa.Column("recorded_at", columns.INSTANT, nullable=False),
    sa.Column("withdrawn_at", columns.INSTANT),
    sa.Column("send_key", sa.Text),
)
recount_blocks = sa.Table(
    "recount_blocks",
    columns.metadata,
    columns.organisation(),
    columns.row_of("recount_id", "recounts", primary_key=True),
    sa.Column("from_at", columns.INSTANT, primary_key=True),
    sa.Column("entered", sa.Integer, nullable=False),
    sa.Column("departed", sa.Integer, nullable=False),
)
