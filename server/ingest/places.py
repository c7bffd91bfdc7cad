"""Where a device's frames belong: its assignments, the window of times it may speak of, its state.

A device's time is cut into pieces, each of one spot (0: unassigned). What lies in no piece is
outside the allowed window: from 30 days before enrolment until 5 minutes from now, widened by the
backfill grants of the spots it stood at. Kept in memory; a notification makes one stale, and so do
30 seconds, should a notification be lost.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import asyncpg

from ext import Place
from protocol.identity import device_id
from protocol.topics import Leg, parse, topic
from server.clock import Clock
from server.ingest.mqtt import publish_head

CHANGED = "fleet_changed"
"""The channel that names a device whose assignments, grants or state have changed."""

DAY_MS = 86_400_000
EARLY_MS = 30 * DAY_MS  # a device may have counted on a bench before it was enrolled
AHEAD_MS = 300_000  # a clock may be so much ahead
STALE_S = 30.0
UNKNOWN_S = 5.0  # ask again about an unknown device, at the earliest
MAX_TOPICS = 200_000  # beyond it the cache starts afresh
EVER_MS = 1 << 60
RECEIPT_BYTES = 56
MAX_SEQ = 0xFFFF_FFFF  # what the wire can say of a cursor: a boot that used it up stands past it


class Piece(NamedTuple):
    """A stretch of a device's time at one spot; `imported` under a backfill grant."""

    spot: int
    from_ms: int
    until_ms: int
    imported: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """What the fleet's register says of a device; each edit of assignments raises the version."""

    organisation: int
    revoked: bool
    assignment_version: int
    pieces: tuple[Piece, ...]


@dataclass(slots=True, eq=False)
class Device:
    """A device as ingest knows it; `stored_to_ms` is the end of what it has stored."""

    row: int
    name: str
    registered: Registered
    receipt_head: bytes
    loaded_at: float
    stored_to_ms: int = -EVER_MS
    usual: Piece | None = None
    tokens: float = 0.0  # filled when it is looked at
    tokens_at: float = -1e9
    boots: dict[int, "Boot"] = field(default_factory=dict)
    running: tuple[int, ...] = ()  # the boots that said hello last, the latest at the end

    def piece(self) -> Piece:
        """Return the piece where its last frames were, at first the latest one."""
        if self.usual is None:
            pieces = self.registered.pieces
            self.usual = pieces[-1] if pieces else Piece(0, 0, 0, imported=False)
        return self.usual


class Cursor(NamedTuple):
    """Where a boot stands: frames below `next_seq` are stored.

    `totals` are in, out by line, `answers` by (question, answer), as of the last frame that had
    any. `open`: a frame since then could not be read, so its people are in no total yet.
    """

    next_seq: int = 0
    digest: int = 0
    totals: tuple[int, ...] = (0,) * 8
    answers: tuple[tuple[int, int, int], ...] = ()
    open: bool = False
    stored_to_ms: int = -EVER_MS


@dataclass(slots=True, eq=False)
class Boot:
    """A boot of a device: `row` is its cursor's, 0 until one is needed; closed: see `closing`."""

    row: int
    device: Device
    boot_id: int
    ordinal: int
    cursor: Cursor
    digests: "Digests"
    undated: bool = False
    closed: bool = False
    refused_to: int = -1  # the end of its gap of refused frames (see `refusals`), -1: it has none

    def forget(self) -> None:
        """Know nothing of it any more: a restored database may stand elsewhere, or not know it."""
        self.row, self.cursor, self.undated, self.closed = 0, Cursor(), False, False
        self.refused_to = -1
        self.digests.clear()


class Digests:
    """The digests of a boot's last frames, as far as this process has seen them.

    Some hundred here, a kilobyte or two a boot; what is older, the rows themselves can tell.
    """

    __slots__ = ("_first", "_known")
    KEPT = 256
    CHECKED = 1024  # repeats of frames older than this are not compared any more

    def __init__(self) -> None:
        self._first = 0
        self._known = array("I")

    def add(self, seq: int, digest: int) -> None:
        """Remember the digest of the frame that was stored last."""
        known = self._known
        if seq != self._first + len(known):  # after a gap, or after a restart
            known = self._known = array("I")
            self._first = seq
        known.append(digest)
        if len(known) >= 2 * self.KEPT:
            del known[: self.KEPT]
            self._first += self.KEPT

    def get(self, seq: int) -> int | None:
        """Return the digest of `seq`, None if it is not remembered here."""
        at = seq - self._first
        return self._known[at] if 0 <= at < len(self._known) else None

    def clear(self) -> None:
        """Forget all: the database is the truth."""
        self._known = array("I")


def cut(
    assignments: Iterable[tuple[int, int, int]],
    grants: Iterable[tuple[int, int, int]],
    *,
    earliest_ms: int,
) -> tuple[Piece, ...]:
    """Return the pieces of a device's time; both arguments are (spot, from_ms, until_ms)."""
    held, given = list(assignments), list(grants)
    edges = sorted(
        {-EVER_MS, EVER_MS, earliest_ms, *(edge for row in (*held, *given) for edge in row[1:])}
    )
    pieces: list[Piece] = []
    for start, end in pairwise(edges):
        spot = next((s for s, low, high in held if low <= start and end <= high), 0)
        granted = any(s == spot and low <= start and end <= high for s, low, high in given)
        if start < earliest_ms and not granted:
            continue
        last = pieces[-1] if pieces else None
        if last and last.until_ms == start and (last.spot, last.imported) == (spot, granted):
            pieces[-1] = last._replace(until_ms=end)
        else:
            pieces.append(Piece(spot, start, end, imported=granted))
    return tuple(pieces)


def covering(pieces: tuple[Piece, ...], *, first_ms: int, end_ms: int, now_ms: int) -> list[Piece]:
    """Return the pieces that hold all of [first_ms, end_ms), or none if any of it is outside."""
    if end_ms > now_ms + AHEAD_MS:
        return []
    at = bisect_right([piece.from_ms for piece in pieces], first_ms) - 1
    found: list[Piece] = []
    covered_ms = first_ms
    while 0 <= at < len(pieces) and pieces[at].from_ms <= covered_ms < pieces[at].until_ms:
        found.append(pieces[at])
        covered_ms = pieces[at].until_ms
        if covered_ms >= end_ms:
            return found
        at += 1
    return []


def place_in(boot_row: int, piece: Piece, *, now_ms: int) -> Place:
    """Return the decoder's place for frames of a boot in `piece`."""
    return Place(boot_row, piece.spot, piece.from_ms, min(piece.until_ms, now_ms + AHEAD_MS))


_LOAD = """
select d.id, d.device, d.organisation_id, not d.admitted as revoked, d.assignment_version,
  extract(epoch from coalesce(d.enrolled_at, d.created_at)) * 1000 as enrolled_ms,
  (select json_agg(json_build_array(a.spot_id,
      case when lower(a.valid) > '-infinity' then extract(epoch from lower(a.valid)) * 1000 end,
      case when upper(a.valid) < 'infinity' then extract(epoch from upper(a.valid)) * 1000 end))
    from assignments a where a.device_id = d.id) as assignments,
  (select json_agg(json_build_array(g.spot_id,
      case when lower(g.valid) > '-infinity' then extract(epoch from lower(g.valid)) * 1000 end,
      case when upper(g.valid) < 'infinity' then extract(epoch from upper(g.valid)) * 1000 end))
    from backfill_grants g
    where g.spot_id in (select a.spot_id from assignments a where a.device_id = d.id)) as grants,
  (select extract(epoch from max(b.stored_to)) * 1000 from boots b
    where b.device_id = d.id) as stored_to_ms
from devices d where d.device = any($1::text[])
"""


class Places:
    """The devices that have been heard of, by topic."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_topic: dict[bytes, Device] = {}
        self._by_name: dict[str, Device] = {}
        self._unknown: dict[bytes, float] = {}
        self.by_topic = self._by_topic.get

    def due(self, topics: Collection[bytes]) -> dict[str, bytes]:
        """Return the devices, with their topics, that must be read before `topics` are used.

        Malformed topics and devices that were unknown a moment ago are left out.
        """
        stale = self._clock.monotonic() - STALE_S
        wanted: dict[str, bytes] = {}
        for name in topics:
            device = self._by_topic.get(name)
            if device is not None:
                if device.loaded_at < stale:
                    wanted[device.name] = name
            elif self._unknown.get(name, -1e9) < self._clock.monotonic() - UNKNOWN_S:
                try:
                    parsed = parse(name.decode())
                except ValueError:
                    continue
                if parsed.leg is Leg.UP:
                    wanted[parsed.device] = name
        return wanted

    async def load(self, connection: asyncpg.Connection, wanted: dict[str, bytes]) -> None:
        """Read what the register says of the devices in `wanted`."""
        if len(self._by_topic) > MAX_TOPICS or len(self._unknown) > MAX_TOPICS:
            self._by_topic.clear()
            self._by_name.clear()
            self._unknown.clear()
        now = self._clock.monotonic()
        found = await connection.fetch(_LOAD, list(wanted))
        for row in found:
            registered = Registered(
                row["organisation_id"],
                row["revoked"],
                row["assignment_version"],
                cut(
                    _ranges(row["assignments"]),
                    _ranges(row["grants"]),
                    earliest_ms=int(row["enrolled_ms"]) - EARLY_MS,
                ),
            )
            stored_to_ms = -EVER_MS if row["stored_to_ms"] is None else int(row["stored_to_ms"])
            self.remember(row["id"], row["device"], registered, stored_to_ms=stored_to_ms)
            self._unknown.pop(wanted.pop(row["device"]), None)
        for name, heard in wanted.items():
            gone = self._by_name.pop(name, None)
            if gone is not None:
                self._by_topic.pop(heard, None)
            self._unknown[heard] = now

    async def read(self, connection: asyncpg.Connection, name: str) -> Device | None:
        """Return one device as the register has it now, None if it is not there."""
        await self.load(connection, {name: b""})
        return self._by_name.get(name)

    def remember(self, row: int, name: str, registered: Registered, *, stored_to_ms: int) -> None:
        """Take note of what the register says of a device now."""
        now = self._clock.monotonic()
        device = self._by_name.get(name)
        if device is None or device.row != row:
            head = publish_head(topic(device_id(name), Leg.RECEIPT), RECEIPT_BYTES)
            device = Device(row, name, registered, head, now, stored_to_ms)
            self._by_name[name] = device
            self._by_topic[topic(device_id(name), Leg.UP).encode()] = device
        if device.registered.assignment_version != registered.assignment_version:
            device.boots = {}  # what of them was refused or moved meanwhile is read anew
        if device.registered != registered:
            device.registered, device.usual = registered, None
        device.loaded_at = now

    def changed(self, name: str) -> None:
        """Take note that what is known of a device is old; an empty name means all."""
        for device in [self._by_name.get(name)] if name else self._by_name.values():
            if device is not None:
                device.loaded_at = -1e9
        self._unknown.clear()

    def devices(self) -> list[Device]:
        """Return all devices that have been heard of."""
        return list(self._by_name.values())

    def doubt(self, boots: Iterable[Boot]) -> None:
        """Take back all that is known of these boots and their devices; it is read anew."""
        for boot in boots:
            boot.forget()
            boot.device.loaded_at = -1e9
            boot.device.usual = None


def _ranges(text: str | None) -> list[tuple[int, int, int]]:
    rows = json.loads(text) if text else []
    return [
        (spot, -EVER_MS if low is None else int(low), EVER_MS if high is None else int(high))
        for spot, low, high in rows
    ]
