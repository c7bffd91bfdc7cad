"""People counted by a person beside a counter."""

from sqlalchemy import Column, Integer, Table, Text

from server.db.tables.columns import INSTANT, metadata, organisation, ref, row_id, row_of

recounts = Table(
    "recounts",
    metadata,
    row_id(),
    organisation(),
    ref(),
    row_of("spot_id", "spots"),
    Column("method", Text, nullable=False),
    Column("counted_by", Text, nullable=False),
    Column("recorded_by", Text, nullable=False),
    Column("recorded_at", INSTANT, nullable=False),
    Column("withdrawn_at", INSTANT),
    Column("send_key", Text),
)
recount_blocks = Table(
    "recount_blocks",
    metadata,
    organisation(),
    row_of("recount_id", "recounts", primary_key=True),
    Column("from_at", INSTANT, primary_key=True),
    Column("entered", Integer, nullable=False),
    Column("departed", Integer, nullable=False),
)
