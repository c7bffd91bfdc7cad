"""What is derived from readings, and what is to be derived anew; and what it is set against."""

import sqlalchemy as sa

from server.db.tables import columns

rollup_15m = sa.Table(
    "rollup_15m",
    columns.metadata,
    sa.Column("bucket", columns.INSTANT, nullable=False),
    sa.Column("observed", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("spot", sa.Integer, nullable=False),
    *columns.by_line(),
    sa.Column("revision", sa.Integer, nullable=False, server_default=sa.text("0")),
    *columns.graded(),
    sa.Column("masked", sa.BigInteger),
)
presses_15m = sa.Table(
    "presses_15m",
    columns.metadata,
    sa.Column("bucket", columns.INSTANT, nullable=False),
    sa.Column("questionnaire", sa.BigInteger, nullable=False),
    sa.Column("spot", sa.Integer, nullable=False),
    sa.Column("presses", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False, server_default=sa.text("0")),
    *columns.answer(),
)
rollup_hour = sa.Table(
    "rollup_hour",
    columns.metadata,
    sa.Column("bucket", columns.INSTANT, nullable=False),
    sa.Column("spot", sa.Integer, nullable=False),
    *columns.by_line(),
    sa.Column("observed_s", sa.SmallInteger, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    *columns.graded(),
    sa.Column("masked_s", sa.SmallInteger),
)
rollup_day = sa.Table(
    "rollup_day",
    columns.metadata,
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("spot", sa.Integer, nullable=False),
    *columns.by_line(),
    *columns.by_line("open_"),
    sa.Column("observed_s", sa.Integer, nullable=False),
    sa.Column("open_observed_s", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    *columns.graded(),
    sa.Column("masked_s", sa.Integer),
)
presses_day = sa.Table(
    "presses_day",
    columns.metadata,
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("questionnaire", sa.BigInteger, nullable=False),
    sa.Column("spot", sa.Integer, nullable=False),
    sa.Column("presses", sa.Integer, nullable=False),
    sa.Column("open_presses", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    *columns.answer(),
)
rollup_dirty = sa.Table(
    "rollup_dirty",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    sa.Column("spots", sa.ARRAY(sa.Integer), nullable=False),
    sa.Column("buckets", sa.ARRAY(columns.INSTANT), nullable=False),
)
rollup_stale = sa.Table(
    "rollup_stale",
    columns.metadata,
    columns.row_of("site_id", "sites", primary_key=True),
)
transactions = sa.Table(
    "transactions",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("site_id", "sites"),
    sa.Column("transaction_ref", sa.Text, nullable=False),
    sa.Column("at", columns.INSTANT, nullable=False),
    sa.Column("kind", sa.Text, nullable=False, server_default=sa.text("'sale'::text")),
    sa.Column("amount", sa.Numeric(14, 2), nullable=False),
    sa.Column("units", sa.Integer, nullable=False, server_default=sa.text("1")),
)
