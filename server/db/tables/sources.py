"""What other systems tell beside the tills: rosters, campaigns, rates of exchange."""

from sqlalchemy import BigInteger, Column, Date, Numeric, Table, Text, text

from server.db.tables.columns import INSTANT, metadata, or_empty, organisation, row_id, row_of

staff_shifts = Table(
    "staff_shifts",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("site_id", "sites"),
    Column("shift_ref", Text, nullable=False),
    or_empty("role"),
    Column("starts_at", INSTANT, nullable=False),
    Column("ends_at", INSTANT, nullable=False),
)
campaigns = Table(
    "campaigns",
    metadata,
    row_id(),
    organisation(),
    Column("campaign_ref", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("from_day", Date, nullable=False),
    Column("until_day", Date, nullable=False),
    Column("cost", Numeric(14, 2), nullable=False, server_default=text("0")),
    Column("currency", Text, nullable=False),
    Column("impressions", BigInteger),
)
campaign_sites = Table(
    "campaign_sites",
    metadata,
    organisation(),
    row_of("campaign_id", "campaigns", primary_key=True),
    row_of("site_id", "sites", primary_key=True),
)
exchange_rates = Table(
    "exchange_rates",
    metadata,
    row_of("organisation_id", "organisations", primary_key=True),
    Column("day", Date, primary_key=True),
    Column("base", Text, primary_key=True),
    Column("quote", Text, primary_key=True),
    Column("rate", Numeric(20, 10), nullable=False),
    Column("source", Text, nullable=False),
)
