"""People and programs, what they may, and what they did."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

users = sa.Table(
    "users",
    columns.metadata,
    columns.row_id(),
    columns.ref(),
    sa.Column("email", sa.Text, nullable=False),
    columns.or_empty("name"),
    sa.Column("language", sa.Text, nullable=False, server_default=sa.text("'en'::text")),
    sa.Column("password_hash", sa.Text),
    sa.Column("totp_sealed", sa.LargeBinary),
    sa.Column("totp_confirmed_at", columns.INSTANT),
    sa.Column("totp_last_step", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("disabled_at", columns.INSTANT),
    columns.stamped("created_at"),
)
grants = sa.Table(
    "grants",
    columns.metadata,
    columns.row_id(),
    columns.row_of("user_id", "users"),
    sa.Column("role", sa.Text, nullable=False),
    columns.row_of("organisation_id", "organisations", nullable=True),
    columns.row_of("region_id", "regions", nullable=True),
    columns.row_of("site_id", "sites", nullable=True),
    columns.stamped("granted_at"),
)
sessions = sa.Table(
    "sessions",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.row_of("user_id", "users"),
    sa.Column("token_sha256", sa.LargeBinary, nullable=False),
    sa.Column("csrf_sha256", sa.LargeBinary, nullable=False),
    columns.row_of("organisation_id", "organisations", nullable=True),
    columns.stamped("created_at"),
    columns.stamped("last_seen"),
    sa.Column("expires_at", columns.INSTANT, nullable=False),
    sa.Column("ended_at", columns.INSTANT),
    columns.or_empty("address"),
    columns.or_empty("browser"),
)
one_time_links = sa.Table(
    "one_time_links",
    columns.metadata,
    sa.Column("token_sha256", sa.LargeBinary, primary_key=True),
    columns.row_of("user_id", "users"),
    sa.Column("purpose", sa.Text, nullable=False),
    columns.stamped("created_at"),
    sa.Column("expires_at", columns.INSTANT, nullable=False),
    sa.Column("used_at", columns.INSTANT),
)
api_keys = sa.Table(
    "api_keys",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
    sa.Column(
        "scopes", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{read}'::text[]")
    ),
    columns.or_empty("note"),
    columns.stamped("created_at"),
    sa.Column("revoked_at", columns.INSTANT),
    sa.Column("expires_at", columns.INSTANT),
    sa.Column("last_used_at", columns.INSTANT),
    columns.row_of("replaced_by", "api_keys", nullable=True),
)
idempotency_keys = sa.Table(
    "idempotency_keys",
    columns.metadata,
    columns.row_of("organisation_id", "organisations", primary_key=True),
    sa.Column("caller", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    columns.stamped("created_at"),
    sa.Column("answer", sa.LargeBinary),
)
audit = sa.Table(
    "audit",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    sa.Column("chain", sa.Integer, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("at", columns.INSTANT, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("act", sa.Text, nullable=False),
    columns.or_empty("subject"),
    sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
digest_subscriptions = sa.Table(
    "digest_subscriptions",
    columns.metadata,
    columns.row_of("user_id", "users", primary_key=True),
    columns.row_of("organisation_id", "organisations", primary_key=True),
    sa.Column("created_at", columns.INSTANT, nullable=False),
)
digests = sa.Table(
    "digests",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("user_id", "users"),
    sa.Column("week", sa.Date, nullable=False),
    sa.Column("due_at", columns.INSTANT, nullable=False),
    sa.Column("next_at", columns.INSTANT),
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    columns.or_empty("trouble"),
    sa.Column("sent_at", columns.INSTANT),
    sa.Column("given_up_at", columns.INSTANT),
)
