"""What a device's connection says: three signals that fail apart, and the state they make. Pure.

- The *session*: a hello opens it, a will or a goodbye closes it. All three name the connection's
  epoch. A will or a goodbye counts for the epoch that is current, and no other; a closed epoch
  never opens again, and one that another has taken over from is closed. So it does not matter in
  what order, or how often, what was said arrives (`heard`).
- The *heartbeat*: health frames. They prove the agent.
- The *data*: what was counted. It proves recorder and disk, and is expected only while the site is
  open: a closed shop is rightly silent.

`judged` makes a state of these, at the time up to which everything is known to have arrived (the
watermark), never at the clock's. Nothing follows from the order of two instants that are equal: a
deadline has passed once the watermark has reached it and no signal as late as it was heard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import assert_never

from server.health.judgement import Condition, Evidence, Judgement, Standing, Subject, SubjectKind

GRACE = timedelta(seconds=10)
"""After a will: who is back by then was never gone, and a broker that dies sends wills at times."""
DRAIN = timedelta(seconds=150)
"""After a broker's start: an agent's longest pause may be set to 120 s, an attempt may take 20."""
PLANNED_MOST = timedelta(days=1)
"""How long a goodbye without an end is believed."""
LATE_BACK = timedelta(minutes=2)
"""After the end that a goodbye gave."""
LOOK_MOST = timedelta(hours=1)
"""Opening hours and assignments may change meanwhile, so nobody is left alone for longer."""
AT_ONCE = timedelta(minutes=1)
"""What a device said itself is decided now: its deadline lies as far before what it said."""
CLOSED = 16
"""Closed epochs that are remembered: what is older does not arrive any more."""
_LOOK_DAYS = 14
_DAY_S = 86_400


class State(StrEnum):
    """What a device's presence is called; `unknown` lies over all of them (`platform`)."""

    HEALTHY = "healthy"
    NO_DATA = "no data"
    NO_HEARTBEAT = "no heartbeat"
    PLANNED = "offline planned"
    OFFLINE = "offline"
    NEVER_SEEN = "never seen"


class Session(StrEnum):
    """What is known of the current connection."""

    NONE = "none"
    OPEN = "open"
    LOST = "lost"  # the broker sent its will
    LEFT = "left"  # it said goodbye


class Kind(StrEnum):
    """What is said of a connection."""

    HELLO = "hello"
    WILL = "will"
    BYE = "bye"


@dataclass(frozen=True, slots=True)
class Said:
    """What was said of the connection `epoch`, as it arrived at `at`.

    A goodbye has its reason, and when the device means to be back, if it knows.
    """

    kind: Kind
    epoch: int
    at: datetime
    reason: str = ""
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """For how long a signal may be missing: three heartbeats, three quiet frames."""

    heartbeat: timedelta = timedelta(seconds=2_700)
    data: timedelta = timedelta(seconds=5_400)


@dataclass(frozen=True, slots=True)
class Presence:
    """All that is kept of one device; `since` is when its state began, as far as is known.

    `closed` are epochs that are over, the latest last. `due_at`: when to look again, if at all.
    """

    since: datetime
    state: State = State.NEVER_SEEN
    session: Session = Session.NONE
    epoch: int | None = None
    session_at: datetime | None = None
    reason: str = ""
    until: datetime | None = None
    closed: tuple[int, ...] = ()
    heartbeat_at: datetime | None = None
    data_at: datetime | None = None
    due_at: datetime | None = None
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database tells when a device is looked at; None: no such signal yet.

    `broker_since`: since when this broker runs: no connection is older. `open_between` gives the
    site's open intervals in seconds; None: the device stands nowhere, so no data is expected.
    """

    heartbeat_at: datetime | None = None
    data_at: datetime | None = None
    broker_since: datetime | None = None
    open_between: Callable[[int, int], Sequence[tuple[int, int]]] | None = None


# -- what is said ----------------------------------------------------------------------------------


def heard(presence: Presence, said: Said) -> Presence:
    """Return the presence after something was said of one of its connections."""
    if said.epoch in presence.closed:
        return presence
    current = presence.session is Session.OPEN and said.epoch == presence.epoch
    if said.kind is Kind.HELLO:
        if current:
            return presence
        over = presence.closed
        if presence.session is Session.OPEN and presence.epoch is not None:
            over = _closing(over, presence.epoch)  # taken over
        return replace(
            presence,
            session=Session.OPEN,
            epoch=said.epoch,
            session_at=said.at,
            reason="",
            until=None,
            closed=over,
            due_at=said.at - AT_ONCE,
        )
    closed = _closing(presence.closed, said.epoch)
    if not current and presence.session is not Session.NONE:
        return replace(presence, closed=closed)  # its own hello may yet come, and opens nothing
    lost = said.kind is Kind.WILL
    return replace(
        presence,
        session=Session.LOST if lost else Session.LEFT,
        epoch=said.epoch,
        session_at=said.at,
        reason=said.reason,
        until=said.until,
        closed=closed,
        due_at=said.at + GRACE if lost else said.at - AT_ONCE,
    )


def _closing(closed: tuple[int, ...], epoch: int) -> tuple[int, ...]:
    return (*closed, epoch)[-CLOSED:]


# -- what it amounts to ----------------------------------------------------------------------------


def judged(presence: Presence, facts: Facts, *, watermark: datetime) -> Presence:
    """Return the presence with the state that its signals make as of `watermark`."""
    found = replace(
        presence,
        heartbeat_at=_later(presence.heartbeat_at, facts.heartbeat_at),
        data_at=_later(presence.data_at, facts.data_at),
        due_at=None,
    )
    at = presence.session_at
    if presence.session is Session.NONE or at is None:
        return _stands(found, State.NEVER_SEEN, presence.since)
    match presence.session:
        case Session.LOST:
            if watermark < at + GRACE:
                return replace(found, due_at=at + GRACE)
            return _stands(found, State.OFFLINE, at)
        case Session.LEFT:
            end = planned_until(presence)
            if watermark < end:
                return replace(_stands(found, State.PLANNED, at), due_at=end)
            return _stands(found, State.OFFLINE, at)
        case Session.OPEN:
            return _open(found, facts, at, watermark)
        case _ as never:
            assert_never(never)


def planned_until(presence: Presence) -> datetime:
    """Return until when a goodbye is believed: what it gave and a little, else a day."""
    assert presence.session_at is not None
    most = presence.session_at + PLANNED_MOST
    return most if presence.until is None else min(presence.until + LATE_BACK, most)


def _open(found: Presence, facts: Facts, at: datetime, watermark: datetime) -> Presence:
    """Judge a device whose connection nobody has ended."""
    beat, data = _later(at, found.heartbeat_at), _later(at, found.data_at)
    assert beat is not None
    assert data is not None
    broker = facts.broker_since
    if broker is not None and max(beat, data) < broker:  # it went down with the broker before
        if watermark < broker + DRAIN:
            return replace(found, due_at=broker + DRAIN)
        return _stands(found, State.OFFLINE, broker)
    beat_due = beat + found.limits.heartbeat
    data_due = None if facts.open_between is None else _silent(data, found, facts.open_between)
    later = watermark + LOOK_MOST
    if beat_due <= watermark:
        return replace(_stands(found, State.NO_HEARTBEAT, beat), due_at=later)
    if data_due is not None and data_due <= watermark:
        return replace(_stands(found, State.NO_DATA, data), due_at=min(beat_due, later))
    back = {
        State.NO_HEARTBEAT: found.heartbeat_at or at,
        State.NO_DATA: found.data_at or at,
    }.get(found.state, at)
    healthy = _stands(found, State.HEALTHY, max(at, back))
    return replace(healthy, due_at=min(beat_due, data_due or beat_due, later))


def _silent(
    data: datetime, found: Presence, open_between: Callable[[int, int], Sequence[tuple[int, int]]]
) -> datetime | None:
    """Return when so much opening time without data will have passed, None: not in a fortnight."""
    start = int(data.timestamp())
    left = found.limits.data.total_seconds()
    for day in range(_LOOK_DAYS):
        low = start + day * _DAY_S
        for opens, closes in open_between(low, low + _DAY_S):
            if closes - opens >= left:
                return datetime.fromtimestamp(opens + left, UTC)
            left -= closes - opens
    return None


def _stands(presence: Presence, state: State, since: datetime) -> Presence:
    """Return it in a state; one that is healthy has been so since when that began."""
    if presence.state is state is State.HEALTHY:
        return presence
    return replace(presence, state=state, since=since)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return max(one, other)


# -- what others are told --------------------------------------------------------------------------

_CONDITIONS = {
    State.OFFLINE: Condition.OFFLINE,
    State.PLANNED: Condition.OFFLINE_PLANNED,
    State.NO_DATA: Condition.NO_DATA,
    State.NO_HEARTBEAT: Condition.NO_HEARTBEAT,
}


def judgements(
    device: int, presence: Presence, *, watermark: datetime, known: bool = True
) -> tuple[Judgement, ...]:
    """Return the judgement of each condition of presence; unknown while nobody can tell.

    While a device is offline nobody can tell of its data and heartbeats either.
    """
    gone = presence.state in (State.OFFLINE, State.PLANNED)
    found: list[Judgement] = []
    for state, condition in _CONDITIONS.items():
        if not known or presence.state is State.NEVER_SEEN:
            standing = Standing.UNKNOWN
        elif presence.state is state:
            standing = Standing.FIRING
        elif gone and state in (State.NO_DATA, State.NO_HEARTBEAT):
            standing = Standing.UNKNOWN
        else:
            standing = Standing.CLEAR
        firing = standing is Standing.FIRING
        found.append(
            Judgement(
                Subject(SubjectKind.DEVICE, device),
                condition,
                standing,
                presence.since,
                evidence(presence, watermark=watermark) if firing else {},
                _affected(presence) if firing else None,
            )
        )
    return tuple(found)


def evidence(presence: Presence, *, watermark: datetime) -> Evidence:
    """Return why it is in its state: how long each signal is missing, and what was said."""
    found: dict[str, float | str] = {"session": presence.session.value}
    for name, at in (
        ("session_s", presence.session_at),
        ("heartbeat_s", presence.heartbeat_at),
        ("data_s", presence.data_at),
    ):
        if at is not None:
            found[name] = round(max(0.0, (watermark - at).total_seconds()), 1)
    found["heartbeat_limit_s"] = presence.limits.heartbeat.total_seconds()
    found["data_limit_s"] = presence.limits.data.total_seconds()
    if presence.reason:
        found["reason"] = presence.reason
    if presence.until is not None:
        found["until"] = presence.until.isoformat()
    return found


def _affected(presence: Presence) -> datetime:
    """Return from when on its counts may be missing: what it counted alone may come yet."""
    return presence.data_at or presence.session_at or presence.since
