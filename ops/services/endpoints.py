"""Where the services are, and how to sign in.

They are on loopback, on ports and with passwords that the stack chose, unless the environment
names others:

    VESTIBULE_DATABASE_URL        postgresql://superuser:password@host:port/
    VESTIBULE_BROKER_URL          mqtts://host:port, for devices
    VESTIBULE_BROKER_SERVICE_URL  mqtts://host:port, for services (default: the same)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ops.services.errors import NotOursError

__all__ = [
    "ADMIN",
    "BROKER_URL",
    "DATABASE",
    "DATABASE_URL",
    "EVERYWHERE",
    "LOOPBACK",
    "ROLES",
    "Endpoints",
    "configured",
]

ADMIN = "vestibule_admin"
DATABASE = "vestibule"
ROLES = {role: f"vestibule_{role}" for role in ("owner", "ingest", "api", "desk", "maint")}
LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - asked for by --address
DATABASE_URL = "VESTIBULE_DATABASE_URL"
BROKER_URL = "VESTIBULE_BROKER_URL"
BROKER_SERVICE_URL = "VESTIBULE_BROKER_SERVICE_URL"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses, ports and passwords of a stack.

    `address` is where devices and phones reach this machine; loopback: they do not.
    """

    pg_host: str
    pg_port: int
    broker_host: str
    broker_device_port: int
    broker_service_port: int
    pki: Path
    passwords: Mapping[str, str] = field(repr=False)
    pg_admin: str = ADMIN
    address: str = LOOPBACK

    @property
    def device_broker_host(self) -> str:
        """Where devices reach the broker, ours or somebody else's."""
        return self.address if self.broker_host == LOOPBACK else self.broker_host

    @property
    def bind(self) -> str:
        """What is listened on for devices and phones: this machine alone, or all its addresses."""
        return LOOPBACK if self.address == LOOPBACK else EVERYWHERE

    def dsn(self, role: str, database: str = DATABASE) -> str:
        """Return the URL for admin, owner, ingest, api or maint."""
        user = self.pg_admin if role == "admin" else ROLES[role]
        login = f"{quote(user, safe='')}:{quote(self.passwords[role], safe='')}"
        return f"postgresql://{login}@{self.pg_host}:{self.pg_port}/{database}"


def configured(endpoints: Endpoints, environment: Mapping[str, str]) -> Endpoints:
    """Return `endpoints` with what the environment names instead. Raises NotOursError."""
    if DATABASE_URL in environment:
        url = _parsed(environment, DATABASE_URL, scheme="postgresql")
        password = unquote(url.password or "")
        endpoints = replace(
            endpoints,
            pg_host=url.hostname or LOOPBACK,
            pg_port=url.port or 5432,
            pg_admin=unquote(url.username or "postgres"),
            passwords={**endpoints.passwords, "admin": password},
        )
    if BROKER_URL in environment:
        url = _parsed(environment, BROKER_URL, scheme="mqtts")
        services = url
        if BROKER_SERVICE_URL in environment:
            services = _parsed(environment, BROKER_SERVICE_URL, scheme="mqtts")
        if services.hostname != url.hostname:
            raise NotOursError(f"{BROKER_URL} and {BROKER_SERVICE_URL} must name one host.")
        endpoints = replace(
            endpoints,
            broker_host=url.hostname or LOOPBACK,
            broker_device_port=url.port or 8883,
            broker_service_port=services.port or 8883,
        )
    return endpoints


def _parsed(environment: Mapping[str, str], name: str, *, scheme: str) -> SplitResult:
    url = urlsplit(environment[name])
    if url.scheme != scheme or not url.hostname:
        raise NotOursError(f"{name} must look like {scheme}://host:port.")
    return url
