"""What KPIs are to be."""

from sqlalchemy import Boolean, Column, Date, Double, Table, Text, text

from server.db.tables.columns import metadata, or_empty, organisation, ref, row_id, row_of, stamped

kpi_targets = Table(
    "kpi_targets",
    metadata,
    row_id(),
    organisation(),
    row_of("site_id", "sites"),
    ref(),
    Column("metric", Text, nullable=False),
    Column("from_day", Date, nullable=False),
    Column("until_day", Date, nullable=False),
    Column("wanted", Double, nullable=False),
    Column("at_most", Boolean, nullable=False, server_default=text("false")),
    Column("scope", Text, nullable=False, server_default=text("'all'::text")),
    or_empty("note"),
    stamped("created_at"),
)
