"""Which deployment a command acts on: the configured one, or the embedded one of this directory.

Configured: VESTIBULE_DSN_OWNER, VESTIBULE_DSN_INGEST, ... and VESTIBULE_PKI in the environment.
Embedded: the services below `.vestibule` (or VESTIBULE_HOME), brought up when needed.
"""

import argparse
import getpass
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from ops.services.endpoints import EVERYWHERE, Endpoints
from ops.services.stack import Stack, free_ports
from server.config import Secret, Settings
from server.db.migrate import check_schema
from server.errors import NotFoundError

Action = Callable[[asyncpg.Connection, argparse.Namespace], Awaitable[None]]
"""What a subcommand does: its verb's `action` (`ops.words`)."""
HOME = "VESTIBULE_HOME"


@dataclass(frozen=True, slots=True)
class Deployment:
    """The owner's way into the database, and the server's settings."""

    owner_dsn: Secret
    settings: Settings


def home() -> Path:
    """Return the embedded deployment's directory."""
    return Path(os.environ.get(HOME, ".vestibule")).absolute()


def deployment(
    *, start: bool = True, database_alone: bool = False, address: str | None = None
) -> Deployment:
    """Return the configured deployment, else the embedded one, with its services up if `start`.

    `database_alone`: the broker is left as it is, so no authority is made where there is none.
    `address`: where devices and phones reach the embedded one from now on. Raises ServicesError,
    SettingsError.
    """
    if os.environ.get("VESTIBULE_DSN_INGEST"):
        owner = os.environ.get("VESTIBULE_DSN_OWNER") or os.environ["VESTIBULE_DSN_INGEST"]
        return Deployment(Secret(owner), Settings.from_environment())
    stack = Stack(home())
    if address is not None:
        stack.reach_at(address)
    reached = (os.environ.get("VESTIBULE_HTTPS_HOST"), _host(os.environ.get("VESTIBULE_ENROL_URL")))
    stack.https_names = tuple(name for name in reached if name and name != EVERYWHERE)
    if database_alone:
        stack.up_database()
        start = False
    found = embedded(stack, start=start)
    return replace(found, settings=found.settings.listening(os.environ))


def embedded(stack: Stack, *, database: str = "vestibule", start: bool = True) -> Deployment:
    """Return the deployment on `stack`, brought up if `start`; its ports are chosen once."""
    endpoints = stack.up() if start else stack.endpoints
    chosen = _chosen(stack.root / "server.json")
    return Deployment(
        Secret(endpoints.dsn("owner", database)),
        Settings(
            dsn_ingest=Secret(endpoints.dsn("ingest", database)),
            dsn_api=Secret(endpoints.dsn("api", database)),
            dsn_maint=Secret(endpoints.dsn("maint", database)),
            pki=endpoints.pki,
            broker_host=endpoints.broker_host,
            broker_service_port=endpoints.broker_service_port,
            device_broker_host=endpoints.device_broker_host,
            device_broker_port=endpoints.broker_device_port,
            http_host=endpoints.bind,
            http_port=int(chosen["http_port"]),
            https_host=endpoints.bind,
            https_port=int(chosen["https_port"]),
            public_url=_url(endpoints, "http", chosen["http_port"]),
            enrol_url=_url(endpoints, "https", chosen["https_port"]),
            session_secret=Secret(chosen["session_secret"]),
            dsn_desk=Secret(endpoints.dsn("desk", database)),
        ),
    )


@asynccontextmanager
async def database(dsn: str, *, timeout_s: float = 60) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database that this release may use, for as long. Raises SchemaMismatch."""
    connection = await asyncpg.connect(dsn, timeout=timeout_s)
    try:
        await check_schema(connection)
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def acting(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Do what a command does in one transaction: all of it, or nothing. Raises SchemaMismatch."""
    async with database(dsn) as connection, connection.transaction():
        yield connection


async def owner_of(connection: asyncpg.Connection, table: str, column: str, name: str) -> int:
    """Return whose a thing is. Raises NotFoundError."""
    found: int | None = await connection.fetchval(
        f"select organisation_id from {table} where {column} = $1",  # noqa: S608 - ours
        name,
    )
    if found is None:
        raise NotFoundError(f"there is no {name!r}")
    return found


def actor() -> str:
    """Return who gives this command, as the audit names them."""
    return f"command {getpass.getuser()}"


async def carry_out(options: argparse.Namespace, *, dsn: str | None = None) -> None:
    """Do a subcommand's `action` in one transaction; the owner's, or by another `dsn`."""
    action: Action = options.action
    async with acting(dsn or deployment(database_alone=True).owner_dsn.reveal()) as connection:
        await action(connection, options)


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that give a child process these settings."""
    return {
        "VESTIBULE_DSN_INGEST": settings.dsn_ingest.reveal(),
        "VESTIBULE_DSN_API": settings.dsn_api.reveal(),
        "VESTIBULE_DSN_DESK": settings.dsn_desk.reveal(),
        "VESTIBULE_DSN_MAINT": settings.dsn_maint.reveal(),
        "VESTIBULE_PKI": str(settings.pki),
        "VESTIBULE_BROKER_HOST": settings.broker_host,
        "VESTIBULE_BROKER_SERVICE_PORT": str(settings.broker_service_port),
        "VESTIBULE_DEVICE_BROKER_HOST": settings.device_broker_host,
        "VESTIBULE_DEVICE_BROKER_PORT": str(settings.device_broker_port),
        "VESTIBULE_HTTP_HOST": settings.http_host,
        "VESTIBULE_HTTP_PORT": str(settings.http_port),
        "VESTIBULE_HTTPS_HOST": settings.https_host,
        "VESTIBULE_HTTPS_PORT": str(settings.https_port),
        "VESTIBULE_PUBLIC_URL": settings.public_url,
        "VESTIBULE_ENROL_URL": settings.enrol_url,
        "VESTIBULE_SESSION_SECRET": settings.session_secret.reveal(),
        "VESTIBULE_SMTP_URL": settings.smtp_url.reveal(),
        "VESTIBULE_MAIL_FROM": settings.mail_from,
        "VESTIBULE_FIRMWARE": str(settings.firmware),
        "VESTIBULE_ROLES": ",".join(sorted(settings.roles)),
    }


def _url(endpoints: Endpoints, scheme: str, port: str) -> str:
    """Return where others reach a listener of ours; empty for the listener's own address."""
    reached = endpoints.bind == EVERYWHERE
    return f"{scheme}://{endpoints.address}:{port}" if reached else ""


def _host(url: str | None) -> str | None:
    return urlsplit(url).hostname if url else None


def _chosen(path: Path) -> dict[str, str]:
    """Return the server's own ports and secret, drawn at the first call."""
    if not path.exists():
        http_port, https_port = free_ports(2)
        drawn = {
            "http_port": str(http_port),
            "https_port": str(https_port),
            "session_secret": secrets.token_urlsafe(32),
        }
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(drawn, file)
    found: dict[str, str] = json.loads(path.read_text())
    return found
