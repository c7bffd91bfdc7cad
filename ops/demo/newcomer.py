"""A device fresh from its box: it asks to be let in by its label, until a technician says where.

Whoever follows the tour's technician card is that technician, and also the people who pass: the
buttons on the card let somebody through its simulated sensor. All the rest is the real agent.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import structlog

from agent import identity
from agent.enrol import EnrolError, enrol_by
from agent.factory import labelled
from agent.identity import NotEnrolledError
from ops.proof import Spot
from protocol.label import ALPHABET, SECRET_LENGTH, Label, label
from simulators.device import Conditions, SimDevice
from simulators.hardware import DeviceSpec, Event
from simulators.traffic import Crossing, Door, Sensor
from simulators.truth import TruthFile

ASKS_EVERY_S = 3.0
FRAME_S = 10
NOBODY = Door("the newcomer's", median_day=1)

log = structlog.get_logger(__name__)


def new_label() -> Label:
    """Return a label as a factory prints one."""
    serial = f"DC-{secrets.randbelow(900_000) + 100_000}"
    return label(serial, "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH)))


class QuietDoor(SimDevice):
    """A door that nobody passes but who is let through."""

    def pass_by(self, *, entered: int, left: int) -> None:
        """Let people through, now, one after the other."""
        now_ms = self._clock.utc_ms()
        self._people.extend(Crossing(now_ms, 0, 1, 0) for _ in range(entered))
        self._people.extend(Crossing(now_ms, 0, 0, 1) for _ in range(left))
        self._next = self._next or next(self._events, None)

    def _listen_from(self, now_ms: int) -> None:
        self._people: deque[Crossing] = deque()
        self._events = self._passing()
        self._next = None

    def _passing(self) -> Iterator[Event]:
        """Yield who was let through; it pauses at None instead of ending."""
        while True:
            yield self._people.popleft() if self._people else None  # type: ignore[misc]


class Newcomer:
    """See the module. `device` is there once it was let in."""

    def __init__(
        self,
        name: str,
        shown: Label,
        *,
        disk: Path,
        outbox: Path,
        server: str,
        root_sha256: str,
        true_offset_ms: int,
        truth: TruthFile,
        conditions: Conditions,
    ) -> None:
        self.name, self.label, self.answer = name, shown, "it has not asked yet"
        self.device: QuietDoor | None = None
        self.spot: Spot | None = None
        self._disk, self._outbox = disk, outbox
        self._ticket = labelled(server, root_sha256, serial=shown.serial, secret=shown.secret)
        self._true_offset_ms, self._truth, self._conditions = true_offset_ms, truth, conditions
        try:
            identity.read(disk)
        except NotEnrolledError:
            return
        self._open()

    def _open(self) -> QuietDoor:
        self.device = QuietDoor(
            DeviceSpec(self.name, NOBODY, 1, Sensor()),
            identity.for_link(self._disk),
            outbox_path=self._outbox,
            true_offset_ms=self._true_offset_ms,
            truth=self._truth,
            conditions=self._conditions,
        )
        return self.device

    async def run(self, *, dsn: str, key: str, joined: Callable[[QuietDoor], None]) -> None:
        """Ask until let in; tell who joined; then learn where it stands."""
        while self.device is None:
            try:
                await asyncio.to_thread(enrol_by, self._ticket, state=self._disk)
            except EnrolError as error:
                self.answer = str(error).removesuffix(f" [{error.code}]")  # for people: no code
                await asyncio.sleep(ASKS_EVERY_S)
            else:
                joined(self._open())
        while self.spot is None:
            try:
                self.spot = await _stands(dsn, self.name, key)
            except (OSError, TimeoutError, asyncpg.PostgresError) as error:
                log.debug("where the newcomer stands could not be asked", error=str(error))
            await asyncio.sleep(0.5)


async def _stands(dsn: str, device: str, key: str) -> Spot | None:
    connection = await asyncpg.connect(dsn, timeout=2, command_timeout=5)
    try:
        row = await connection.fetchrow(
            "select p.ref, s.name || ', ' || p.name as label, s.time_zone from assignments a "
            "join devices d on d.id = a.device_id join spots p on p.id = a.spot_id "
            "join sites s on s.id = p.site_id where d.device = $1 and upper_inf(a.valid)",
            device,
        )
    finally:
        await connection.close()
    return None if row is None else Spot(row["ref"], row["label"], "counter", row["time_zone"], key)
