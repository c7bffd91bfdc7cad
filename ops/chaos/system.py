"""A whole running system: fresh database, `vestibule serve` as a process, devices that enrol.

Chaos tortures one; the system tests each get one. The services (a `Stack`) are the caller's, and
must not be shared with anybody who would mind that they are killed.
"""

import asyncio
import secrets
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import asyncpg

from ops.chaos.device import AgentSettings, Device, enrolled
from ops.chaos.record import Crossing, Touch, Truth
from ops.chaos.served import Api
from ops.chaos.verify import Verdict, verify
from ops.deployment import Deployment, embedded, environment
from ops.register import add_claimed_devices
from ops.services.child import READY_S, Child, vestibule, wait_ready
from ops.services.stack import Stack, free_ports
from protocol.identity import DeviceId
from server.api.keys import create_api_key
from server.db.migrate import migrate

CONVERGE_S = 60.0

T = TypeVar("T")


@dataclass(slots=True)
class System:
    """Server, database and broker, and the devices that were enrolled in it."""

    stack: Stack
    root: Path
    deployment: Deployment
    database: str
    server: Child
    devices: list[Device] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        """The owner's way into the database."""
        return self.deployment.owner_dsn.reveal()

    @property
    def url(self) -> str:
        """Where pages and API are."""
        settings = self.deployment.settings
        return f"http://{settings.http_host}:{settings.http_port}"

    def start(self) -> None:
        """Start the server and return once it is ready. Raises ServiceFailedError."""
        self.server.start()
        self.wait_ready()

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return once database, broker and server serve. Raises ServiceFailedError."""
        wait_ready(self.server, self.url, timeout_s=timeout_s)

    def api(self, organisation: str = "Chaos") -> Api:
        """Make a key for the organisation and return the way to its API."""
        return Api(self.url, (blocking(self._key(organisation)),))

    def enrol(
        self,
        count: int,
        *,
        settings: AgentSettings | None = None,
        organisation: str = "Chaos",
        time_zone: str = "Europe/Stockholm",
    ) -> list[Device]:
        """Register `count` devices at a spot each, enrol them over HTTPS; none runs yet."""
        chosen = settings or AgentSettings()
        claimed = blocking(self._claim(count, chosen.kind, organisation, time_zone))
        with ThreadPoolExecutor(4) as pool:
            made = list(
                pool.map(lambda claim: enrolled(self.root, claim[0], claim[1], chosen), claimed)
            )
        self.devices += made
        return made

    def truth(self) -> Truth:
        """Return all that was fed to the devices by hand."""
        told = [event for device in self.devices for event in device.told]
        return Truth(
            tuple(event for event in told if isinstance(event, Crossing)),
            tuple(event for event in told if isinstance(event, Touch)),
        )

    def verdict(self) -> Verdict:
        """Compare what was fed by hand with what is stored and served now."""
        return blocking(verify(self.truth(), self.dsn, api=self.api()))

    def converge(self, timeout_s: float = CONVERGE_S) -> Verdict:
        """Return the verdict once it is proved, or the last one when the time is over."""
        deadline = time.monotonic() + timeout_s
        truth, api = self.truth(), self.api()
        while True:
            verdict = blocking(verify(truth, self.dsn, api=api))
            if verdict.proved or time.monotonic() > deadline:
                return verdict
            time.sleep(0.5)

    def close(self) -> None:
        """End agents and server, each by its own id."""
        for device in self.devices:
            device.agent.kill()
        self.server.end()

    async def _claim(
        self, count: int, kind: str, organisation: str, time_zone: str
    ) -> list[tuple[DeviceId, str]]:
        connection = await asyncpg.connect(self.dsn)
        try:
            async with connection.transaction():
                return await add_claimed_devices(
                    connection,
                    [
                        {
                            "organisation": organisation,
                            "site": f"{organisation} {time_zone} {number % 3}",
                            "time_zone": time_zone,
                            "spot": f"{kind} {number}",
                            "kind": kind,
                            "serial": f"chaos-{number}",
                        }
                        for number in range(len(self.devices), len(self.devices) + count)
                    ],
                    self.deployment.settings,
                )
        finally:
            await connection.close()

    async def _key(self, organisation: str) -> str:
        connection = await asyncpg.connect(self.dsn)
        try:
            row = await connection.fetchval(
                "select id from organisations where name = $1", organisation
            )
            return await create_api_key(connection, row, note="chaos")
        finally:
            await connection.close()


@contextmanager
def running(stack: Stack, *, root: Path) -> Iterator[System]:
    """Run a server on `stack` in a database of its own, which is dropped at the end."""
    database = f"system_{secrets.token_hex(4)}"
    stack.up()
    stack.postgres.create_database(database)
    found = embedded(stack, database=database)
    http_port, https_port = free_ports(2)
    settings = replace(found.settings, http_port=http_port, https_port=https_port)
    blocking(migrate(found.owner_dsn.reveal()))
    root.mkdir(parents=True, exist_ok=True)
    server = Child("server", vestibule("serve"), root / "server.log", env=environment(settings))
    made = System(stack, root, Deployment(found.owner_dsn, settings), database, server)
    try:
        made.start()
        yield made
    finally:
        made.close()
        stack.up()
        stack.postgres.drop_database(database)


def blocking(work: Coroutine[object, object, T]) -> T:
    """Run a coroutine to its end, also where a loop already runs in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
