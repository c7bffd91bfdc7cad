"""What is derived from readings, and what is to be derived anew; and what it is set against."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Date,
    Integer,
    Numeric,
    SmallInteger,
    Table,
    Text,
    text,
)

from server.db.tables.columns import (
    INSTANT,
    answer,
    by_line,
    graded,
    metadata,
    organisation,
    row_id,
    row_of,
)

rollup_15m = Table(
    "rollup_15m",
    metadata,
    Column("bucket", INSTANT, nullable=False),
    Column("observed", BigInteger, nullable=False, server_default=text("0")),
    Column("spot", Integer, nullable=False),
    *by_line(),
    Column("revision", Integer, nullable=False, server_default=text("0")),
    *graded(),
    Column("masked", BigInteger),
)
presses_15m = Table(
    "presses_15m",
    metadata,
    Column("bucket", INSTANT, nullable=False),
    Column("questionnaire", BigInteger, nullable=False),
    Column("spot", Integer, nullable=False),
    Column("presses", Integer, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("0")),
    *answer(),
)
rollup_hour = Table(
    "rollup_hour",
    metadata,
    Column("bucket", INSTANT, nullable=False),
    Column("spot", Integer, nullable=False),
    *by_line(),
    Column("observed_s", SmallInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    *graded(),
    Column("masked_s", SmallInteger),
)
rollup_day = Table(
    "rollup_day",
    metadata,
    Column("day", Date, nullable=False),
    Column("spot", Integer, nullable=False),
    *by_line(),
    *by_line("open_"),
    Column("observed_s", Integer, nullable=False),
    Column("open_observed_s", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    *graded(),
    Column("masked_s", Integer),
)
presses_day = Table(
    "presses_day",
    metadata,
    Column("day", Date, nullable=False),
    Column("questionnaire", BigInteger, nullable=False),
    Column("spot", Integer, nullable=False),
    Column("presses", Integer, nullable=False),
    Column("open_presses", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    *answer(),
)
rollup_dirty = Table(
    "rollup_dirty",
    metadata,
    row_id(BigInteger),
    Column("spots", ARRAY(Integer), nullable=False),
    Column("buckets", ARRAY(INSTANT), nullable=False),
)
rollup_stale = Table(
    "rollup_stale",
    metadata,
    row_of("site_id", "sites", primary_key=True),
)
transactions = Table(
    "transactions",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("site_id", "sites"),
    Column("transaction_ref", Text, nullable=False),
    Column("at", INSTANT, nullable=False),
    Column("kind", Text, nullable=False, server_default=text("'sale'::text")),
    Column("amount", Numeric(14, 2), nullable=False),
    Column("units", Integer, nullable=False, server_default=text("1")),
)
