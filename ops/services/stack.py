"""The two services as one thing: brought up, looked at, taken down.

A stack lives below one directory:

    endpoints.json   ports, chosen once        secrets.json   passwords, chosen once (0600)
    pki/             certificates and keys     logs/          one file per service
    postgres/        the cluster               broker/        the broker's own files
    *.pid            what we started           lock           held while starting or stopping
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path

from ops.services.account import reachable_home, service_account
from ops.services.address import demand_own, name_server
from ops.services.broker import Broker, BrokerProgram, ConfiguredBroker, host_mosquitto
from ops.services.endpoints import (
    BROKER_URL,
    DATABASE_URL,
    LOOPBACK,
    ROLES,
    Endpoints,
    configured,
)
from ops.services.errors import ServicesError
from ops.services.packages import Bundle, Progress, library_folder, locked, unpacked
from ops.services.postgres import ConfiguredPostgres, Postgres, PostgresPrograms, host_postgres
from server.pki.authority import Authority

__all__ = ["Endpoints", "ServiceStatus", "Stack", "free_ports"]

SERVICES = Bundle(
    name="services",
    packages=(
        "postgresql-17",
        "postgresql-client-17",
        "postgresql-17-timescaledb",
        "mosquitto",
    ),
    keep=r"^(lib|zlib1g)",
    drop=r"^lib(llvm|z3|perl|.*-perl|c-bin|c-l10n|pam-|debconf|semanage|sepol)",
    programs=("usr/lib/postgresql/17/bin/*", "usr/sbin/mosquitto"),
    megabytes=600,
)
# below the range from which the kernel takes the ports of outgoing connections
_PORTS = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service as it is now; `pid` is None where we did not start it."""

    name: str
    running: bool
    pid: int | None
    ports: tuple[int, ...]
    log_path: Path


class Stack:
    """PostgreSQL and the broker below one directory; `role` notes whose they are."""

    def __init__(self, root: Path, *, role: str = "dev") -> None:
        self.root = root.absolute()
        self.role = role
        self.https_names: tuple[str, ...] = ()  # by which the server's listener is reached, too
        self._account = service_account()

    @property
    def endpoints(self) -> Endpoints:
        """Where the services are. Raises ServicesError before the first `up`."""
        try:
            ports = json.loads((self.root / "endpoints.json").read_text())
            passwords = json.loads((self.root / "secrets.json").read_text())
        except FileNotFoundError as error:
            raise ServicesError(
                f"{self.root} holds no services yet; run `vestibule services up`."
            ) from error
        own = Endpoints(
            pg_host=LOOPBACK,
            pg_port=ports["postgres"],
            broker_host=LOOPBACK,
            broker_device_port=ports["broker_devices"],
            broker_service_port=ports["broker_services"],
            pki=self.root / "pki",
            passwords=passwords,
            address=ports.get("address", LOOPBACK),
        )
        return configured(own, os.environ)

    @cached_property
    def postgres(self) -> Postgres:
        kind = ConfiguredPostgres if DATABASE_URL in os.environ else Postgres
        return kind(
            self.root,
            programs=cache(self._postgres_programs),
            account=self._account,
            endpoints=self.endpoints,
        )

    @cached_property
    def broker(self) -> Broker:
        kind = ConfiguredBroker if BROKER_URL in os.environ else Broker
        return kind(
            self.root,
            program=cache(self._broker_program),
            account=self._account,
            endpoints=self.endpoints,
        )

    def reach_at(self, address: str) -> None:
        """Have devices and phones reach this machine at `address` from the next `up` on.

        An IPv4 address or a name of this machine; loopback: nobody else does. If it is another than
        before the broker is stopped, and devices come back alone. Raises AddressError.
        """
        demand_own(address)
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / "lock"):
            self._choose_once()
            if self.endpoints.address == address:
                return
            self.broker.stop()
            path = self.root / "endpoints.json"
            chosen = json.loads(path.read_text()) | {"address": address}
            _write(path, json.dumps(chosen), mode=0o644)
            for cached in ("postgres", "broker"):
                self.__dict__.pop(cached, None)

    def up(self, progress: Progress = lambda text: None) -> Endpoints:
        """Start what does not run, making what is missing; return where it is.

        Raises a ServicesError whose text says what to do.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "logs").mkdir(exist_ok=True)
        with locked(self.root / "lock"):
            self._choose_once()
            self._certify()
            self._programs(progress)
            self.postgres.start(progress)
            self.broker.start(progress)
            self.postgres.wait_ready()
            self.broker.wait_ready()
            self.postgres.prepare()
        return self.endpoints

    def up_database(self) -> Endpoints:
        """Start the database alone: no authority is made for who only reads and writes rows.

        Raises a ServicesError whose text says what to do.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "logs").mkdir(exist_ok=True)
        with locked(self.root / "lock"):
            self._choose_once()
            self._programs(lambda text: None)
            self.postgres.start()
            self.postgres.wait_ready()
            self.postgres.prepare()
        return self.endpoints

    def restart_broker(self) -> None:
        """Stop the broker and start it with the files as they are now; devices come back alone."""
        with locked(self.root / "lock"):
            self._certify()
            self.broker.stop()
            self.broker.start()
            self.broker.wait_ready()

    def down(self) -> None:
        """Stop both services, the broker first; data stays."""
        if not (self.root / "endpoints.json").exists():
            return
        with locked(self.root / "lock"):
            self.broker.stop()
            self.postgres.stop()

    def remove(self) -> None:
        """Stop both services and delete everything below the root."""
        self.down()
        for place in (self.root, reachable_home(self.root)):
            shutil.rmtree(place, ignore_errors=True)

    def status(self) -> list[ServiceStatus]:
        """Return each service's state; an empty list before the first `up`."""
        if not (self.root / "endpoints.json").exists():
            return []
        postgres, broker = self.postgres, self.broker
        return [
            ServiceStatus(
                "postgres", postgres.running, postgres.pid, (postgres.port,), postgres.log_path
            ),
            ServiceStatus(
                "broker",
                broker.running,
                broker.pid,
                (broker.device_port, broker.service_port),
                broker.log_path,
            ),
        ]

    def _choose_once(self) -> None:
        ports = self.root / "endpoints.json"
        if not ports.exists():
            names = ("postgres", "broker_devices", "broker_services")
            chosen = dict(zip(names, free_ports(len(names)), strict=True))
            _write(ports, json.dumps({**chosen, "role": self.role}), mode=0o644)
            for cached in ("postgres", "broker"):
                self.__dict__.pop(cached, None)
        passwords = self.root / "secrets.json"
        words = json.loads(passwords.read_text()) if passwords.exists() else {}
        if missing := {"admin", *ROLES} - words.keys():  # a release may bring a role
            words |= {name: secrets.token_hex(24) for name in sorted(missing)}
            _write(passwords, json.dumps(words), mode=0o600)

    def _certify(self) -> None:
        pki = self.root / "pki"
        if (pki / "root.pem").exists():
            authority = Authority.load(pki)
        else:  # its roots cannot sign again: for a fleet that is to stay, `vestibule ca init`
            authority = Authority.create(pki)
        authority.files.derive()
        authority.ensure_services(now=datetime.now(UTC))
        address, now = self.endpoints.address, datetime.now(UTC)
        name_server(authority, "broker", [address], now=now)
        name_server(authority, "https", [address, *self.https_names], now=now)

    def _programs(self, progress: Progress) -> None:
        if host_postgres() is None or host_mosquitto() is None:
            unpacked(SERVICES, account=self._account, progress=progress)

    def _postgres_programs(self) -> PostgresPrograms:
        return host_postgres() or PostgresPrograms(self._tree() / "usr/lib/postgresql/17/bin")

    def _broker_program(self) -> BrokerProgram:
        found = host_mosquitto()
        if found is not None:
            return found
        tree = self._tree()
        return BrokerProgram(
            mosquitto=tree / "usr/sbin/mosquitto",
            plugin=library_folder(tree) / "mosquitto_dynamic_security.so",
        )

    def _tree(self) -> Path:
        return unpacked(SERVICES, account=self._account, progress=lambda text: None)


def free_ports(count: int) -> list[int]:
    """Return distinct ports that nobody listens on."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        if port not in chosen:
            chosen.append(port)
    return chosen


def _write(path: Path, text: str, *, mode: int) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)
