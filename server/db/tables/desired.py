"""What devices are to be and to do: layers of settings, what was told and answered, commands."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables.columns import (
    INSTANT,
    metadata,
    or_empty,
    organisation,
    ref,
    row_id,
    row_of,
)


def _object(name: str) -> Column[object]:
    return Column(name, JSONB, nullable=False, server_default=text("'{}'::jsonb"))


settings_layers = Table(
    "settings_layers",
    metadata,
    row_id(),
    organisation(),
    Column("scope", Text, nullable=False),
    or_empty("model"),
    row_of("site_id", "sites", nullable=True),
    row_of("device_id", "devices", nullable=True),
    Column("version", Integer, nullable=False, server_default=text("1")),
    _object("entries"),
    Column("changed_at", INSTANT, nullable=False),
)
device_settings = Table(
    "device_settings",
    metadata,
    row_of("device_id", "devices", primary_key=True),
    organisation(),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("told", JSONB, nullable=False),
    Column("told_at", INSTANT, nullable=False),
    Column("report", JSONB),
    Column("reported_version", BigInteger),
    Column("reported_at", INSTANT),
)
command_batches = Table(
    "command_batches",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("kind", Text, nullable=False),
    Column("lines", Integer, nullable=False, server_default=text("0")),
    or_empty("reason"),
    Column("asked_by", Text, nullable=False),
    Column("asked_at", INSTANT, nullable=False),
    Column("expires_at", INSTANT, nullable=False),
    Column("once", Text),
)
commands = Table(
    "commands",
    metadata,
    row_id(BigInteger),
    organisation(),
    row_of("batch_id", "command_batches"),
    ref(),
    row_of("device_id", "devices"),
    row_of("site_id", "sites", nullable=True),
    Column("state", Text, nullable=False, server_default=text("'queued'::text")),
    Column("due_at", INSTANT, nullable=False),
    Column("sent_at", INSTANT),
    Column("started_at", INSTANT),
    Column("ended_at", INSTANT),
    or_empty("code"),
    _object("result"),
    or_empty("ended_by"),
)
command_files = Table(
    "command_files",
    metadata,
    Column("command_id", BigInteger, ForeignKey("commands.id"), primary_key=True),
    organisation(),
    Column("content", LargeBinary, nullable=False),
    Column("stored_at", INSTANT, nullable=False),
)
