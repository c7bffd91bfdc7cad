"""Crash-free hours, and time connected against time expected, by model and agent's version.

Expected is the time between a device's first connection in the range and its end, without what it
announced (a goodbye, while that is believed) and without the stretches in which nobody could tell.
Connected is the part of it in which a connection stood. A crash is a connection that was lost for a
fault of the agent, or a start whose reason was one (`boot.reason`); hours of use without one are
crash-free.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.health.presence import LATE_BACK, PLANNED_MOST

HOUR = timedelta(hours=1)
CRASHED = 3.0  # `boot.reason` of an agent that ended without a word on a machine that ran on
Stretch = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Event:
    """A connection's beginning or end, or a crash that a start has told of."""

    at: datetime
    kind: str  # connected, lost, goodbye, crash
    reason: str = ""
    until: datetime | None = None
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Life:
    """One device's events in order; what it was when the range began is its first event."""

    model: str
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Stability:
    """Of one model and version; hours. `crash_free` is None where there were no whole hours."""

    model: str
    agent: str
    devices: int
    expected_h: float
    connected_h: float
    crashes: int
    hours: int
    crash_free_hours: int

    @property
    def connected(self) -> float | None:
        """The share of the expected time in which it was connected."""
        return None if self.expected_h <= 0 else min(1.0, self.connected_h / self.expected_h)

    @property
    def crash_free(self) -> float | None:
        """The share of the hours of use in which nothing crashed."""
        return None if self.hours == 0 else self.crash_free_hours / self.hours


@dataclass(slots=True)
class _Sum:
    devices: int = 0
    expected: timedelta = timedelta()
    connected: timedelta = timedelta()
    crashes: int = 0
    hours: int = 0
    clean: int = 0


def stability(
    lives: Iterable[Life], *, since: datetime, until: datetime, unknown: Sequence[Stretch] = ()
) -> list[Stability]:
    """Return the stability in [since, until) of each model and version that was in use. Pure."""
    sums: dict[tuple[str, str], _Sum] = {}
    for life in lives:
        seen: set[str] = set()
        for agent, stretch, state, crashes in _parts(life, since=since, until=until):
            total = sums.setdefault((life.model, agent), _Sum())
            if agent not in seen:
                total.devices += 1
                seen.add(agent)
            known = sum((high - low for low, high in _without(stretch, unknown)), timedelta())
            if state != "planned":
                total.expected += known
            if state == "connected":
                total.connected += known
            total.crashes += crashes
        for agent, hours, clean in _hours(life, since=since, until=until):
            total = sums.setdefault((life.model, agent), _Sum())
            total.hours += hours
            total.clean += clean
    return [
        Stability(
            *key, each.devices, each.expected / HOUR, each.connected / HOUR, each.crashes,
            each.hours, each.clean,
        )
        for key, each in sorted(sums.items())
    ]  # fmt: skip


def _parts(life: Life, *, since: datetime, until: datetime) -> list[tuple[str, Stretch, str, int]]:
    """Return the stretches of a life: agent, from and to, connected | gone | planned, crashes."""
    found: list[tuple[str, Stretch, str, int]] = []
    agent = next((event.agent for event in life.events if event.agent), "")
    state, began, end = "", since, until
    planned_until = since
    for event in (*life.events, None):
        at = until if event is None else min(max(event.at, since), until)
        if state == "planned" and planned_until < at:
            found.append((agent, (began, planned_until), "planned", 0))
            state, began = "gone", planned_until
        if state and began < at:
            found.append((agent, (began, at), state, 0))
        if event is None or event.at >= end:
            break
        crash = event.kind == "crash" or (event.kind == "lost" and event.reason == "failed")
        if crash and event.at >= since:
            found.append((agent, (at, at), state or "gone", 1))
        if event.kind == "crash":
            began = at
            continue
        began, agent = at, event.agent or agent
        state = {"connected": "connected", "lost": "gone", "goodbye": "planned"}[event.kind]
        if state == "planned":
            most = event.at + PLANNED_MOST
            said = most if event.until is None else min(event.until + LATE_BACK, most)
            planned_until = max(said, since)
    return found


def _hours(life: Life, *, since: datetime, until: datetime) -> list[tuple[str, int, int]]:
    """Return of each version the whole hours of use (connected at all), and those without crash."""
    used: dict[int, str] = {}
    crashed: set[int] = set()
    for agent, (low, high), state, crashes in _parts(life, since=since, until=until):
        first, last = int((low - since) / HOUR), int((high - since) / HOUR)
        if crashes:
            crashed.add(first)
            used.setdefault(first, agent)
        elif state == "connected":
            for hour in range(first, last + 1 if since + last * HOUR < high else last):
                used[hour] = agent
    totals: dict[str, list[int]] = {}
    for hour, agent in used.items():
        total = totals.setdefault(agent, [0, 0])
        total[0] += 1
        total[1] += hour not in crashed
    return [(agent, hours, clean) for agent, (hours, clean) in totals.items()]


def _without(stretch: Stretch, holes: Sequence[Stretch]) -> list[Stretch]:
    """Return a stretch without the holes, which are in order and apart."""
    found: list[Stretch] = []
    at, end = stretch
    for low, high in holes:
        if high <= at or low >= end:
            continue
        if at < low:
            found.append((at, low))
        at = max(at, high)
    if at < end:
        found.append((at, end))
    return found


async def measured(
    connection: asyncpg.Connection, *, since: datetime, until: datetime
) -> list[Stability]:
    """Return the stability of the connection's organisation in [since, until)."""
    holes = await connection.fetch(
        "select since, coalesce(until, $2) from platform_unknown "
        "where since < $2 and coalesce(until, $2) > $1 order by since",
        *(since, until),
    )
    rows = await connection.fetch(_LIVES, since, until, CRASHED)
    lives: dict[int, tuple[str, list[Event]]] = {}
    for device, model, at, kind, reason, ends, agent in rows:
        lives.setdefault(device, (model, []))[1].append(
            Event(at, kind, reason, ends and datetime.fromisoformat(ends), agent or "")
        )
    return stability(
        [Life(model, tuple(events)) for model, events in lives.values()],
        since=since,
        until=until,
        unknown=[tuple(hole) for hole in holes],
    )


_LIVES = """
    with said as (
        select e.device_id, e.id, e.at, e.kind, e.reason, e.detail ->> 'until' as ends,
               e.detail ->> 'agent' as agent
        from device_events e
        where e.organisation_id = current_organisation()
            and e.kind in ('connected', 'lost', 'goodbye') and e.at < $2),
    before as (
        select distinct on (device_id) * from said where at < $1 order by device_id, id desc)
    select d.id, d.model, x.at, x.kind, x.reason, x.ends, x.agent
    from (
        select * from before union all
        select * from said where at >= $1 union all
        select e.device_id, e.id, e.at, 'crash', '', null, null from device_events e
        where e.kind = 'boot' and e.at >= $1 and e.at < $2 and exists (
            select from my_device_metrics c
            join my_device_metrics r on r.device = c.device and r.time = c.time
            where c.device = e.device_id and c.time >= e.at - interval '1 day'
                and c.name = 'boot.count' and c.value = (e.detail ->> 'ordinal')::float8
                and r.name = 'boot.reason' and r.value = $3)
    ) x join devices d on d.id = x.device_id
    where d.organisation_id = current_organisation()
    order by d.id, x.at, x.id
"""
