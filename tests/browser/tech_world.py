"""A store, its technician's phone and real agents: what the tests of the technician's pages need.

The server, its broker and its database run as `vestibule serve` runs them. The phone's camera is a
file that Chromium plays; a scan is a QR code drawn into it.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import asyncpg
import segno

from ops.deployment import embedded
from ops.services.child import Child, python, vestibule, wait_ready
from ops.services.stack import Stack
from protocol.label import ALPHABET, Label, label
from server.config import Settings
from server.people import links, users
from server.people.roles import Grant, Role
from server.provisioning.claims import root_fingerprint

T = TypeVar("T")
INTERVAL_S = 5  # so that nobody waits for whole minutes
WIDTH, HEIGHT = 640, 480


@dataclass
class Agent:
    """A real agent with a label, as a process of its own; counts go in by its socket."""

    shown: Label
    child: Child
    socket: Path
    fed: int = 0

    def count(self, entered: int = 0, left: int = 0) -> None:
        """Let people pass, and return once they are on the device's disk."""
        self.fed += 1
        event = {"source": "test", "id": self.fed, "line": 0, "in": entered, "out": left}
        until = time.monotonic() + 30
        while True:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                    sock.settimeout(10)
                    sock.connect(str(self.socket))
                    sock.sendall(b'{"source":"test"}\n' + json.dumps(event).encode() + b"\n")
                    for line in sock.makefile("rb"):
                        said = json.loads(line)
                        assert "error" not in said, said
                        if said.get("stored", 0) >= self.fed:
                            return
            except OSError:
                assert time.monotonic() < until, self.child.tail()
                time.sleep(0.1)  # it is just starting

    def stop(self) -> None:
        self.child.end()


@dataclass
class Store:
    """The running server, seen from outside."""

    settings: Settings
    dsn: str
    home: Path
    server: Child
    organisation: int = 0
    site: str = ""
    agents: list[Agent] = field(default_factory=list)
    labels: int = 0

    @property
    def base(self) -> str:
        return f"http://{self.settings.http_host}:{self.settings.http_port}"

    def ask(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Ask the database, in a thread of its own: Playwright holds this one's loop."""

        async def run() -> T:
            connection = await asyncpg.connect(self.dsn)
            try:
                async with connection.transaction():
                    return await work(connection)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result(60)

    def sql(self, text: str, *values: object) -> list[asyncpg.Record]:
        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            return list(await connection.fetch(text, *values))

        return self.ask(work)

    def value(self, text: str, *values: object) -> object:
        rows = self.sql(text, *values)
        return rows[0][0] if rows else None

    def spot(self, name: str, *, kind: str = "counter") -> str:
        """Add a spot; its ref."""
        ref = f"spot-{name.lower().replace(' ', '')[:20]}"
        self.sql(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "select organisation_id, id, $2, $3, $4 from sites where ref = $1",
            *(self.site, ref, name, kind),
        )
        return ref

    def device(self, serial: str = "", *, kind: str = "counter") -> Label:
        """Put a device on the allow-list; its label."""
        self.labels += 1
        serial = serial or f"DC-{self.labels:04}"
        letters = (ALPHABET[(self.labels * 7 + n * 5) % 32] for n in range(16))
        found = label(serial, "".join(letters))
        self.sql(
            "insert into devices (organisation_id, device, kind, serial, model, setup_sha256, "
            "state) values ($1, $2, $3, $4, 'Tröskel 2', $5, 'manufactured')",
            *(self.organisation, f"dc-{serial.lower():a>9}", kind, serial, found.secret_sha256),
        )
        return found

    def start(self, shown: Label) -> Agent:
        """Switch a device on: it asks to be enrolled, and counts once it is."""
        folder = self.home / shown.serial
        folder.mkdir(exist_ok=True)
        said = {
            "STATE": str(folder),
            "SOCKET": str(folder / "s"),
            "SERVER": self.settings.enrolment_url,
            "ROOT_SHA256": root_fingerprint(self.settings.pki),
            "SERIAL": shown.serial,
            "SETUP_SECRET": shown.secret,
            "INTERVAL_S": str(INTERVAL_S),
            "FRAME_S": str(INTERVAL_S),
            "QUIET_FRAME_S": str(INTERVAL_S),
            "FLUSH_S": "0.05",
            "SPREAD_S": "0",
            "LINES": "1",
        }
        child = Child(
            "agent",
            python("-m", "agent", "run"),
            folder / "log",
            {f"VESTIBULE_AGENT_{name}": text for name, text in said.items()},
        )
        child.start()
        agent = Agent(shown, child, folder / "s")
        self.agents.append(agent)
        return agent

    def counted(self, spot: str) -> tuple[int, int]:
        """Return what is stored of a spot, in and out."""
        [row] = self.sql(
            "select coalesce(sum(entered), 0)::int as i, coalesce(sum(left_), 0)::int as o "
            "from spots p, readings_between(p.id, now() - interval '1 day', now() "
            "+ interval '1 h') where p.ref = $1",
            spot,
        )
        return row["i"], row["o"]

    def link(self, email: str = "tove@example.com", to: str = "/tech") -> str:
        """Return an address that signs the technician in, made at the first call."""

        async def make(connection: asyncpg.Connection) -> str:
            now = datetime.now(UTC)
            if not await users.listed(connection, wanted=email):
                name = email.split("@")[0].title()
                row = await users.add(connection, email=email, name=name, actor="test", now=now)
                grant = Grant(Role.TECHNICIAN, self.organisation)
                await users.grant(connection, row, grant, actor="test", now=now)
            user = await users.find(connection, email)
            purpose = links.Purpose.SIGN_IN
            token = await users.link(connection, user, purpose, actor="test", now=now)
            return f"{links.address(self.base, purpose, token)}&to={to}"

        return self.ask(make)


@contextmanager
def open_store() -> Iterator[Store]:
    """A store with one site and two spots, whose devices wait for a technician's word."""
    home = Path(tempfile.mkdtemp(prefix="vestibule-tech-"))
    home.chmod(0o755)
    server = Child("server", vestibule("serve"), home / "server.log", {"VESTIBULE_HOME": str(home)})
    stack = Stack(home)
    try:
        stack.up()
        found = embedded(stack, start=False)
        server.start()
        store = Store(found.settings, found.owner_dsn.reveal(), home, server)
        wait_ready(server, store.base)
        store.organisation = int(
            str(
                store.value(
                    "insert into organisations (ref, name, enrolment) "
                    "values ('nordljus', 'Nordljus Mode', 'technician') returning id"
                )
            )
        )
        store.site = "site-vasagatan"
        store.sql(
            "insert into sites (organisation_id, ref, name, address, time_zone) values "
            "($1, $2, 'Vasagatan', 'Vasagatan 12, Stockholm', 'Europe/Stockholm'), "
            "($1, 'site-avenyn', 'Avenyn', 'Kungsportsavenyn 3, Göteborg', 'Europe/Stockholm')",
            *(store.organisation, store.site),
        )
        yield store
    finally:
        for agent in store.agents if "store" in locals() else ():
            agent.stop()
        server.end()
        with contextlib.suppress(OSError):
            stack.remove()
        shutil.rmtree(home, ignore_errors=True)


def film(path: Path, text: str | None) -> None:
    """Write what the camera sees: a QR code of `text`, or only grey."""
    luma = bytearray(b"\xb0" * (WIDTH * HEIGHT))
    if text is not None:
        rows = [list(row) for row in segno.make(text, error="m", micro=False).matrix_iter(1, 4)]
        scale = (HEIGHT - 40) // len(rows)
        left, top = (WIDTH - scale * len(rows)) // 2, (HEIGHT - scale * len(rows)) // 2
        for y, row in enumerate(rows):
            line = b"".join((b"\x18" if dark else b"\xe8") * scale for dark in row)
            for dy in range(scale):
                at = (top + y * scale + dy) * WIDTH + left
                luma[at : at + len(line)] = line
    frame = b"FRAME\n" + bytes(luma) + b"\x80" * (WIDTH * HEIGHT // 2)
    whole = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Ip A1:1 C420jpeg\n".encode() + frame * 2
    beside = path.with_name("beside.y4m")
    beside.write_bytes(whole)
    os.replace(beside, path)
