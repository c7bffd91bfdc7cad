"""How a device comes to its certificate, and how it loses it again."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

claims = sa.Table(
    "claims",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.row_of("device_id", "devices"),
    sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
    columns.stamped("created_at"),
    sa.Column("expires_at", columns.INSTANT, nullable=False),
    sa.Column("used_at", columns.INSTANT),
    sa.Column("spki_sha256", sa.LargeBinary),
)
technician_claims = sa.Table(
    "technician_claims",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("user_id", "users"),
    columns.row_of("device_id", "devices"),
    columns.row_of("spot_id", "spots"),
    columns.row_of("replaces_id", "devices", nullable=True),
    sa.Column("since", columns.INSTANT, nullable=False),
    columns.stamped("created_at"),
    sa.Column("expires_at", columns.INSTANT, nullable=False),
    sa.Column("used_at", columns.INSTANT),
    sa.Column("ended_at", columns.INSTANT),
    columns.row_of("voucher_id", "vouchers", nullable=True),
    sa.Column("walk", JSONB),
    sa.Column("signed_off_at", columns.INSTANT),
    columns.or_empty("signed_off_by"),
)
vouchers = sa.Table(
    "vouchers",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("user_id", "users"),
    columns.row_of("site_id", "sites"),
    columns.stamped("created_at"),
    sa.Column("expires_at", columns.INSTANT, nullable=False),
    sa.Column("uses_left", sa.SmallInteger, nullable=False),
    sa.Column("withdrawn_at", columns.INSTANT),
)
phone_acts = sa.Table(
    "phone_acts",
    columns.metadata,
    columns.row_of("user_id", "users", primary_key=True),
    sa.Column("act_ref", sa.Text, primary_key=True),
    columns.organisation(),
    sa.Column("act", sa.Text, nullable=False),
    columns.stamped("done_at"),
    sa.Column("answer", JSONB, nullable=False),
)
unknown_devices = sa.Table(
    "unknown_devices",
    columns.metadata,
    sa.Column("serial", sa.Text, primary_key=True),
    columns.stamped("first_seen"),
    columns.stamped("last_seen"),
    sa.Column("times", sa.Integer, nullable=False, server_default=sa.text("1")),
    columns.or_empty("address"),
    sa.Column("spki_sha256", sa.LargeBinary),
    sa.Column("dismissed_at", columns.INSTANT),
)
authorities = sa.Table(
    "authorities",
    columns.metadata,
    columns.row_id(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("certificate", sa.Text, nullable=False),
    sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
    sa.Column("not_after", columns.INSTANT, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'trusted'::text")),
    columns.stamped("created_at"),
)
certificates = sa.Table(
    "certificates",
    columns.metadata,
    sa.Column("serial", sa.Text, primary_key=True),
    columns.organisation(),
    columns.row_of("device_id", "devices"),
    sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
    columns.stamped("recorded_at"),
    sa.Column("not_after", columns.INSTANT),
    sa.Column("chain", sa.Text),
    sa.Column("revoked_at", columns.INSTANT),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'active'::text")),
    columns.row_of("authority_id", "authorities", nullable=True),
    sa.Column("reason", sa.Text, nullable=False, server_default=sa.text("'enrolment'::text")),
    sa.Column("renew_after", columns.INSTANT),
    sa.Column("staged_at", columns.INSTANT),
    sa.Column("activated_at", columns.INSTANT),
    sa.Column("retired_at", columns.INSTANT),
)
issuance_log = sa.Table(
    "issuance_log",
    columns.metadata,
    sa.Column("number", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    columns.stamped("at"),
    sa.Column("serial", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("authority", sa.Text, nullable=False),
    sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
)
trust_proofs = sa.Table(
    "trust_proofs",
    columns.metadata,
    columns.row_of("device_id", "devices", primary_key=True),
    sa.Column("root_spki_sha256", sa.LargeBinary, primary_key=True),
    columns.stamped("proved_at"),
)
admissions = sa.Table(
    "admissions",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("device_id", "devices"),
    sa.Column("admit", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("asked_by", sa.Text, nullable=False),
    columns.stamped("asked_at"),
    sa.Column("broker_at", columns.INSTANT),
    sa.Column("crl_at", columns.INSTANT),
    sa.Column("proved_at", columns.INSTANT),
    columns.or_empty("trouble"),
)
