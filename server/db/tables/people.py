"""People and programs, what they may, and what they did."""

from sqlalchemy import ARRAY, BigInteger, Column, Date, Integer, LargeBinary, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables.columns import (
    INSTANT,
    metadata,
    or_empty,
    organisation,
    ref,
    row_id,
    row_of,
    stamped,
)

users = Table(
    "users",
    metadata,
    row_id(),
    ref(),
    Column("email", Text, nullable=False),
    or_empty("name"),
    Column("language", Text, nullable=False, server_default=text("'en'::text")),
    Column("password_hash", Text),
    Column("totp_sealed", LargeBinary),
    Column("totp_confirmed_at", INSTANT),
    Column("totp_last_step", BigInteger, nullable=False, server_default=text("0")),
    Column("disabled_at", INSTANT),
    stamped("created_at"),
)
grants = Table(
    "grants",
    metadata,
    row_id(),
    row_of("user_id", "users"),
    Column("role", Text, nullable=False),
    row_of("organisation_id", "organisations", nullable=True),
    row_of("region_id", "regions", nullable=True),
    row_of("site_id", "sites", nullable=True),
    stamped("granted_at"),
)
sessions = Table(
    "sessions",
    metadata,
    row_id(BigInteger),
    row_of("user_id", "users"),
    Column("token_sha256", LargeBinary, nullable=False),
    Column("csrf_sha256", LargeBinary, nullable=False),
    row_of("organisation_id", "organisations", nullable=True),
    stamped("created_at"),
    stamped("last_seen"),
    Column("expires_at", INSTANT, nullable=False),
    Column("ended_at", INSTANT),
    or_empty("address"),
    or_empty("browser"),
)
one_time_links = Table(
    "one_time_links",
    metadata,
    Column("token_sha256", LargeBinary, primary_key=True),
    row_of("user_id", "users"),
    Column("purpose", Text, nullable=False),
    stamped("created_at"),
    Column("expires_at", INSTANT, nullable=False),
    Column("used_at", INSTANT),
)
api_keys = Table(
    "api_keys",
    metadata,
    row_id(),
    organisation(),
    Column("prefix", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False, server_default=text("'{read}'::text[]")),
    or_empty("note"),
    stamped("created_at"),
    Column("revoked_at", INSTANT),
    Column("expires_at", INSTANT),
    Column("last_used_at", INSTANT),
    row_of("replaced_by", "api_keys", nullable=True),
)
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    row_of("organisation_id", "organisations", primary_key=True),
    Column("caller", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    stamped("created_at"),
    Column("answer", LargeBinary),
)
audit = Table(
    "audit",
    metadata,
    row_id(BigInteger),
    Column("chain", Integer, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("at", INSTANT, nullable=False),
    Column("actor", Text, nullable=False),
    Column("act", Text, nullable=False),
    or_empty("subject"),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("previous", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
digest_subscriptions = Table(
    "digest_subscriptions",
    metadata,
    row_of("user_id", "users", primary_key=True),
    row_of("organisation_id", "organisations", primary_key=True),
    Column("created_at", INSTANT, nullable=False),
)
digests = Table(
    "digests",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("user_id", "users"),
    Column("week", Date, nullable=False),
    Column("due_at", INSTANT, nullable=False),
    Column("next_at", INSTANT),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    or_empty("trouble"),
    Column("sent_at", INSTANT),
    Column("given_up_at", INSTANT),
)
