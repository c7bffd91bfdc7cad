"""The private Mosquitto: a disposable pipe that is restarted with nothing in it.

Its account reads only its own folder, where each start puts the configuration, its certificate and
key, the two anchors and the revocation list. Only the deny-list survives a restart.

Invariant: it never gets SIGHUP. 2.0.21 and 2.0.22 then corrupt their session lists, and admit
revoked devices if the revocation list is unreadable.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ops.broker.bundles import FILES, note_installed
from ops.broker.configuration import ACCESS_LIST, BrokerFiles, dynamic_security, mosquitto_conf
from ops.services.account import Account, data_directory
from ops.services.endpoints import Endpoints
from ops.services.packages import Progress
from ops.services.process import demand_free_port, port_answers, spawn
from ops.services.service import Configured, Service
from server.pki.authority import Authority
from server.pki.profile import CA_LIFE

__all__ = ["Broker", "BrokerProgram", "ConfiguredBroker", "host_mosquitto"]


@dataclass(frozen=True, slots=True)
class BrokerProgram:
    """Where mosquitto and its dynamic security plugin lie."""

    mosquitto: Path
    plugin: Path


def host_mosquitto() -> BrokerProgram | None:
    """Return the host's own Mosquitto 2 if it has the dynamic security plugin."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        return None
    text = subprocess.run([found, "-h"], capture_output=True, text=True, check=False).stdout
    plugins = [
        plugin
        for place in ("lib/*", "lib", "local/lib", "lib/mosquitto")
        for plugin in Path("/usr").glob(f"{place}/mosquitto_dynamic_security.so")
    ]
    if not re.search(r"mosquitto version 2\.", text) or not plugins:
        return None
    return BrokerProgram(mosquitto=Path(found), plugin=plugins[0])


class Broker(Service):
    """One Mosquitto below a stack's root: devices on one port, services on another.

    `program` is asked only when there is something to start: looking and stopping fetch nothing.
    """

    name = "broker"
    title = "The broker"
    ends_on = signal.SIGTERM
    patience_s = 30

    def __init__(
        self,
        root: Path,
        *,
        program: Callable[[], BrokerProgram],
        account: Account,
        endpoints: Endpoints,
    ) -> None:
        super().__init__(root, account)
        self.device_port = endpoints.broker_device_port
        self.service_port = endpoints.broker_service_port
        self._host = endpoints.broker_host
        self._bind = endpoints.bind
        self._program = program

    def start(self, progress: Progress = lambda text: None) -> None:
        """Start with empty hands; a running one is left alone."""
        if self.running:
            return
        for port in (self.device_port, self.service_port):
            demand_free_port(
                self._host, port, service="the broker", remembered_in=self._root / "endpoints.json"
            )
        progress("starting the broker")
        home = data_directory(self._root, "broker", account=self._account)
        self._write_files(home)
        daemon = spawn(
            [str(self._program().mosquitto), "-c", str(home / "mosquitto.conf")],
            account=self._account,
            log=self.log_path,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd=home,
        )
        daemon.remember(self._pid_path)

    def _answers(self) -> bool:
        return port_answers(self._host, self.device_port) and port_answers(
            self._host, self.service_port
        )

    def _write_files(self, home: Path) -> None:
        pki = self._root / "pki"
        # The broker cannot be told to read a newer list (no SIGHUP), and an expired one locks out
        # the whole fleet: its copy outlives any uptime. Revoking in seconds is the deny-list's.
        # What is written is verified, and an unreadable list gives way to the broker's last one.
        Authority.load(pki).refresh_crl(
            now=datetime.now(UTC), life=CA_LIFE, fallback=home / "device.crl"
        )
        files = BrokerFiles(folder=home, plugin=self._program().plugin)
        conf = mosquitto_conf(
            files, bind=self._bind, device_port=self.device_port, service_port=self.service_port
        )
        denied = home / "dynamic-security.json"
        previous = denied.read_text() if denied.exists() else None
        self._write(home / "mosquitto.conf", conf.encode())
        self._write(home / "acl", ACCESS_LIST.encode())
        self._write(denied, dynamic_security(previous).encode())
        for name in FILES:
            self._write(home / name, (pki / name).read_bytes())
        note_installed(pki)

    def _write(self, path: Path, content: bytes) -> None:
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        self._account.own(partial)
        partial.replace(path)


class ConfiguredBroker(Configured, Broker):
    """A broker that somebody else runs."""

    setting = "VESTIBULE_BROKER_URL"
