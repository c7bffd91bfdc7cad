"""What devices are to be and to do: layers of settings, what was told and answered, commands."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns


def _object(name: str) -> sa.Column[object]:
    return sa.Column(name, JSONB, nullable=False, server_default=sa.text("'{}'::jsonb"))


settings_layers = sa.Table(
    "settings_layers",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    sa.Column("scope", sa.Text, nullable=False),
    columns.or_empty("model"),
    columns.row_of("site_id", "sites", nullable=True),
    columns.row_of("device_id", "devices", nullable=True),
    sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("1")),
    _object("entries"),
    sa.Column("changed_at", columns.INSTANT, nullable=False),
)
device_settings = sa.Table(
    "device_settings",
    columns.metadata,
    columns.row_of("device_id", "devices", primary_key=True),
    columns.organisation(),
    sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("told", JSONB, nullable=False),
    sa.Column("told_at", columns.INSTANT, nullable=False),
    sa.Column("report", JSONB),
    sa.Column("reported_version", sa.BigInteger),
    sa.Column("reported_at", columns.INSTANT),
)
command_batches = sa.Table(
    "command_batches",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("lines", sa.Integer, nullable=False, server_default=sa.text("0")),
    columns.or_empty("reason"),
    sa.Column("asked_by", sa.Text, nullable=False),
    sa.Column("asked_at", columns.INSTANT, nullable=False),
    sa.Column("expires_at", columns.INSTANT, nullable=False),
    sa.Column("once", sa.Text),
    sa.Column("override_freeze", sa.Boolean, nullable=False, server_default=sa.text("false")),
)
commands = sa.Table(
    "commands",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    columns.row_of("batch_id", "command_batches"),
    columns.ref(),
    columns.row_of("device_id", "devices"),
    columns.row_of("site_id", "sites", nullable=True),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'queued'::text")),
    sa.Column("due_at", columns.INSTANT, nullable=False),
    sa.Column("sent_at", columns.INSTANT),
    sa.Column("started_at", columns.INSTANT),
    sa.Column("ended_at", columns.INSTANT),
    columns.or_empty("code"),
    _object("result"),
    columns.or_empty("ended_by"),
)
command_files = sa.Table(
    "command_files",
    columns.metadata,
    sa.Column("command_id", sa.BigInteger, sa.ForeignKey("commands.id"), primary_key=True),
    columns.organisation(),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("stored_at", columns.INSTANT, nullable=False),
)
