"""Where everybody is, once a second: generated, stored, on their way, lost.

Three sides that do not know each other: *generated* is the simulators' truth, *stored* is summed in
the database out of what the server wrote, *on their way* is what the agents' outboxes hold beyond
the server's cursors. The cursors and the sums are of one snapshot, so the three agree to the
person at any moment; what is missing then is lost.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from agent.outbox import Boot
from simulators.device import SimDevice
from simulators.hardware import people_in

_SIGNED = 1 << 63


@dataclass(frozen=True, slots=True)
class Sum:
    """People over lines, and presses on kiosks."""

    people: int = 0
    presses: int = 0

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.people + other.people, self.presses + other.presses)

    def __sub__(self, other: "Sum") -> "Sum":
        return Sum(self.people - other.people, self.presses - other.presses)


@dataclass(frozen=True, slots=True)
class Door:
    """One counter whose day is shown: what its truth said since `since`, before it went live."""

    device: SimDevice
    spot: str
    since: datetime
    told: int


@dataclass(frozen=True, slots=True)
class DoorBalance:
    """That door's account since `since`; `stored` None while the database is away."""

    generated: int
    stored: int | None
    waiting: int
    frames: int


@dataclass(frozen=True, slots=True)
class Balance:
    """One moment's account; `stored` is None while the database is away."""

    generated: Sum
    stored: Sum | None
    on_their_way: Sum
    online: int
    devices: int
    door: DoorBalance

    @property
    def lost(self) -> Sum | None:
        if self.stored is None:
            return None
        return self.generated - self.stored - self.on_their_way

    def line(self) -> str:
        """Return the demo's one line."""
        stored = "   (database away)" if self.stored is None else f"{self.stored.people:>10,}"
        lost = "?" if self.lost is None else f"{self.lost.people:,}"
        return (
            f"generated {self.generated.people:>10,}  stored {stored}  "
            f"on their way {self.on_their_way.people:>8,}  lost {lost:>3}  "
            f"online {self.online}/{self.devices}"
        )


class Meter:
    """Reads the account; `told` is what the truth files held before the devices went live."""

    def __init__(self, devices: Sequence[SimDevice], *, told: Sum, dsn: str, door: Door) -> None:
        self._devices = devices
        self._door = door
        self._told = told
        self._before = {id(device): device.confirmed for device in devices}
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None
        self._final: dict[int, int] = {}  # totals of boots that have ended, by boot
        self._cursors: Mapping[tuple[str, int], int] = {}
        self.last = self._balance(None, None)

    def join(self, device: SimDevice) -> None:
        """Count one more device, which has joined the others."""
        self._before[id(device)] = device.confirmed

    async def read(self) -> Balance:
        """Return the account now."""
        try:
            stored, at_door, cursors = await self._ask()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await self.close()
            self.last = self._balance(None, None)
            return self.last
        self._cursors = cursors
        self.last = self._balance(stored, at_door)
        return self.last

    async def close(self) -> None:
        """Close the connection, dead or alive."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def waiting(self, device: SimDevice) -> int:
        """Return how many people or presses of a device are beyond the server's cursors."""
        return sum(
            self._total(device, boot) - self._cursors.get((device.spec.device, boot.boot_id), 0)
            for boot in device.outbox.boots
        )

    async def _ask(self) -> tuple[Sum, int, dict[tuple[str, int], int]]:
        if self._connection is None:
            self._connection = await asyncpg.connect(self._dsn, timeout=2, command_timeout=10)
        async with (
            asyncio.timeout(10),
            self._connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            people = await self._connection.fetchval(_PEOPLE, None, None)
            presses = await self._connection.fetchval(_PRESSES)
            at_door = await self._connection.fetchval(_PEOPLE, self._door.spot, self._door.since)
            rows = await self._connection.fetch(_CURSORS)
        cursors = {(device, boot % (2 * _SIGNED)): total for device, boot, total in rows}
        return Sum(people, presses), at_door, cursors

    def _balance(self, stored: Sum | None, at_door: int | None) -> Balance:
        generated, waiting = self._told, Sum()
        for device in self._devices:
            live = device.confirmed - self._before[id(device)]
            generated += _of(device, live)
            waiting += _of(device, self.waiting(device))
        online = sum(device.connected for device in self._devices)
        door = self._door
        live = door.device.confirmed - self._before[id(door.device)]
        at = DoorBalance(
            generated=door.told + live,
            stored=at_door,
            waiting=self.waiting(door.device),
            frames=door.device.frames_waiting,
        )
        return Balance(generated, stored, waiting, online, len(self._devices), at)

    def _total(self, device: SimDevice, boot: Boot) -> int:
        """Return all that a boot has recorded; of one that has ended, from its last record."""
        if boot is device.outbox.current:
            return people_in(device.recorder.totals)
        found = self._final.get(boot.boot_id)
        if found is None:
            rows = device.outbox.read(boot, boot.next_seq - 1, limit=1) if boot.next_seq else []
            if not rows:  # receipted and forgotten: nothing of it is on its way
                return self._cursors.get((device.spec.device, boot.boot_id), 0)
            found = self._final[boot.boot_id] = people_in(rows[0].meta.totals)
        return found


def _of(device: SimDevice, number: int) -> Sum:
    return Sum(people=number) if device.spec.kiosk is None else Sum(presses=number)


_PEOPLE = """
    select coalesce(sum(coalesce(in0, 0) + coalesce(out0, 0) + coalesce(in1, 0) + coalesce(out1, 0)
        + coalesce(in2, 0) + coalesce(out2, 0) + coalesce(in3, 0) + coalesce(out3, 0)), 0)::bigint
    from rollup_15m
    where $1::text is null
       or (bucket >= $2 and spot = (select id from spots where ref = $1))
"""
_PRESSES = "select coalesce(sum(presses), 0)::bigint from presses_15m"
_CURSORS = """
    select d.device, b.boot_id,
           case d.kind when 'counter' then (select coalesce(sum(t), 0) from unnest(b.totals) t)
           else (select coalesce(sum(t), 0) from unnest(b.answers) with ordinality u(t, n)
                 where n % 3 = 0) end::bigint
    from all_boots b join devices d on d.id = b.device_id
"""
