"""What other systems tell beside the tills: rosters, campaigns, rates of exchange."""

import sqlalchemy as sa

from server.db.tables import columns

staff_shifts = sa.Table(
    "staff_shifts",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("site_id", "sites"),
    sa.Column("shift_ref", sa.Text, nullable=False),
    columns.or_empty("role"),
    sa.Column("starts_at", columns.INSTANT, nullable=False),
    sa.Column("ends_at", columns.INSTANT, nullable=False),
)
campaigns = sa.Table(
    "campaigns",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    sa.Column("campaign_ref", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("from_day", sa.Date, nullable=False),
    sa.Column("until_day", sa.Date, nullable=False),
    sa.Column("cost", sa.Numeric(14, 2), nullable=False, server_default=sa.text("0")),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("impressions", sa.BigInteger),
)
campaign_sites = sa.Table(
    "campaign_sites",
    columns.metadata,
    columns.organisation(),
    columns.row_of("campaign_id", "campaigns", primary_key=True),
    columns.row_of("site_id", "sites", primary_key=True),
)
exchange_rates = sa.Table(
    "exchange_rates",
    columns.metadata,
    columns.row_of("organisation_id", "organisations", primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("base", sa.Text, primary_key=True),
    sa.Column("quote", sa.Text, primary_key=True),
    sa.Column("rate", sa.Numeric(20, 10), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
)
