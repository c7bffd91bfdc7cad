"""What KPIs are to be."""

import sqlalchemy as sa

from server.db.tables import columns

kpi_targets = sa.Table(
    "kpi_targets",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("site_id", "sites"),
    columns.ref(),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("from_day", sa.Date, nullable=False),
    sa.Column("until_day", sa.Date, nullable=False),
    sa.Column("wanted", sa.Double, nullable=False),
    sa.Column("at_most", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("scope", sa.Text, nullable=False, server_default=sa.text("'all'::text")),
    columns.or_empty("note"),
    columns.stamped("created_at"),
)
