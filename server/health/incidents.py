"""What an episode is part of, and when anybody is told: topology and timers. Pure.

An incident is what open episodes have in common: one condition at one site, or what explains them.
What lies above explains what lies below it (`explains`): the platform everything, a site that is
gone its devices, a device that is gone what its counter seems to do wrong. What is explained tells
nobody; it belongs to the incident of what explains it. Nothing explains itself, nor two things each
other.

`next_step` decides of one incident, in this order: over, platform, explained, hours, windows,
acknowledged, wait, interval, repeat. Each answer has its reason and until when it holds; so what
was not told can be said why. An incident that ends within its wait never tells anybody.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import NamedTuple

from server.health.judgement import (
    Condition,
    Evidence,
    Judgement,
    Standing,
    Subject,
    SubjectKind,
)
from server.health.rules import Hours, Rule

# -- where it lies ---------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a subject is in the topology (rows); None: not below such a thing."""

    organisation: int | None = None
    site: int | None = None
    device: int | None = None
    spot: int | None = None


NOWHERE = Place()


@dataclass(frozen=True, slots=True)
class Open:
    """An open episode: which, of what, where."""

    id: int
    subject: Subject
    condition: Condition
    place: Place


_LEVELS = tuple(SubjectKind)
_COUNTS = frozenset(
    {
        *(Condition.FLATLINE, Condition.STUCK_COUNTER, Condition.STUCK_BUTTON),
        *(Condition.REVERSED, Condition.IMBALANCE, Condition.LEVEL_SHIFT),
        *(Condition.BLOCKED_VIEW, Condition.CLOSED_COUNTING),
    }
)
_LINK = frozenset(
    {
        *(Condition.OFFLINE, Condition.OFFLINE_PLANNED, Condition.NO_DATA),
        *(Condition.NO_HEARTBEAT, Condition.FLAPPING, Condition.BACKLOG),
    }
)
_EXPLAINED: Mapping[Condition, frozenset[Condition]] = {
    Condition.PLATFORM_UNKNOWN: frozenset(Condition) - {Condition.PLATFORM_UNKNOWN},
    Condition.SITE_OFFLINE: _LINK | _COUNTS,
    Condition.REBOOT_LOOP: (_LINK - {Condition.BACKLOG}) | _COUNTS,
    Condition.OFFLINE: _COUNTS | {Condition.FLAPPING, Condition.BACKLOG},
    Condition.OFFLINE_PLANNED: _COUNTS | {Condition.FLAPPING, Condition.BACKLOG},
    Condition.NO_DATA: _COUNTS | {Condition.BACKLOG},
    Condition.NO_HEARTBEAT: frozenset({Condition.BACKLOG}),
    Condition.CLOCK_DRIFT: frozenset({Condition.CLOSED_COUNTING}),
}


def explains(parent: Open, child: Open) -> bool:
    """Whether `child` is what `parent` would look like there."""
    if parent.id == child.id or child.condition not in _EXPLAINED.get(parent.condition, ()):
        return False
    if _LEVELS.index(parent.subject.kind) > _LEVELS.index(child.subject.kind):
        return False
    match parent.subject.kind:
        case SubjectKind.PLATFORM:
            return True
        case SubjectKind.SITE:
            return parent.place.site == child.place.site is not None
        case SubjectKind.DEVICE:
            return parent.place.device == child.place.device is not None
        case SubjectKind.SPOT:
            return parent.place.spot == child.place.spot is not None


def root_of(child: Open, others: Iterable[Open]) -> Open | None:
    """Return what explains it, the highest first; None if it explains itself."""
    found = [each for each in others if explains(each, child)]
    order = tuple(_EXPLAINED)
    return min(
        found,
        key=lambda each: (
            _LEVELS.index(each.subject.kind),
            order.index(each.condition),
            each.id,
        ),
        default=None,
    )


def key_of(subject: Subject, condition: Condition, place: Place) -> str:
    """Return what episodes of one incident have in common."""
    if place.site is not None:
        return f"site {place.site} {condition}"
    return f"{subject.kind} {subject.row} {condition}"


# -- a site that is gone ---------------------------------------------------------------------------

TOGETHER = timedelta(minutes=5)
LEAST_GONE, SHARE_GONE, SHARE_BACK = 2, 0.8, 0.5


def outage(
    site: int,
    *,
    devices: int,
    gone: Sequence[datetime],
    stands: bool,
    now: datetime,
) -> Judgement | None:
    """Judge whether a site of so many `devices` is gone; `gone`: since when those are that are.

    It fires once all or most went within a few minutes, and goes on until half of them are back.
    None: there is nothing to say of the site as a whole.
    """
    subject = Subject(SubjectKind.SITE, site)
    evidence: Evidence = {"devices": float(devices), "gone": float(len(gone))}
    if stands:
        stays = len(gone) > devices * SHARE_BACK
        standing = Standing.FIRING if stays else Standing.CLEAR
        return Judgement(subject, Condition.SITE_OFFLINE, standing, now, evidence)
    wanted = max(LEAST_GONE, ceil(devices * SHARE_GONE))
    for first, last in _runs(sorted(gone), wanted):
        if last - first <= TOGETHER:
            return Judgement(subject, Condition.SITE_OFFLINE, Standing.FIRING, first, evidence)
    return None


def _runs(instants: Sequence[datetime], length: int) -> Iterable[tuple[datetime, datetime]]:
    return zip(instants, instants[length - 1 :], strict=False)


# -- who is told, and when -------------------------------------------------------------------------


class Suppression(StrEnum):
    """Why an open episode tells nobody."""

    NONE = ""
    INHIBITED = "inhibited"
    MAINTENANCE = "maintenance"
    VISIT = "visit"


@dataclass(frozen=True, slots=True)
class Heard:
    """An open episode of an incident, as far as messages go.

    `until`: when its suppression ends, if that is known; `seen_to`: somebody acknowledged it,
    `due_at`: until when.
    """

    id: int
    suppression: Suppression = Suppression.NONE
    until: datetime | None = None
    seen_to: bool = False
    due_at: datetime | None = None


class Tell(StrEnum):
    """What a message says."""

    OPENED = "opened"
    UPDATED = "updated"
    REPEATED = "repeated"
    RESOLVED = "resolved"


class Why(StrEnum):
    """Why a message was sent, or was not."""

    NEW = "new"
    CHANGED = "changed"
    STILL_OPEN = "still_open"
    ALL_CLEAR = "all_clear"
    CLEARED_UNTOLD = "cleared_untold"
    PLATFORM_UNKNOWN = "platform_unknown"
    INHIBITED = "inhibited"
    CLOSED = "closed"
    MAINTENANCE = "maintenance"
    VISIT = "visit"
    ACKNOWLEDGED = "acknowledged"
    WAIT = "wait"
    INTERVAL = "interval"
    REPEAT = "repeat"


@dataclass(frozen=True, slots=True)
class Timers:
    """When an incident may tell, and what it told last: of which episodes, explained ones apart."""

    ready_at: datetime
    told_at: datetime | None = None
    told: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """What is done now: something is told, or nothing, and why; `until`: look again then."""

    tell: Tell | None
    why: Why
    until: datetime | None = None

    @property
    def ends(self) -> bool:
        """Whether the incident is over with it."""
        return self.why in (Why.ALL_CLEAR, Why.CLEARED_UNTOLD)


def next_step(
    timers: Timers,
    episodes: Sequence[Heard],
    rule: Rule,
    *,
    now: datetime,
    opens_at: datetime | None,
    known: bool = True,
) -> Step:
    """Decide of one incident. `episodes` are those open, `opens_at` when its site opens next.

    `opens_at` is now or before while the site is open, None if it does not within sight; `known`:
    the platform can tell, or this is about the platform.
    """
    if not episodes:
        told = timers.told_at is not None
        return Step(Tell.RESOLVED, Why.ALL_CLEAR) if told else Step(None, Why.CLEARED_UNTOLD)
    if not known:
        return Step(None, Why.PLATFORM_UNKNOWN)
    heard = [each for each in episodes if each.suppression is not Suppression.INHIBITED]
    if not heard:
        return Step(None, Why.INHIBITED)
    if rule.hours is Hours.OPEN and (opens_at is None or opens_at > now):
        return Step(None, Why.CLOSED, opens_at)
    loud = [each for each in heard if each.suppression is Suppression.NONE]
    if not loud:
        first = heard[0].suppression
        why = Why.VISIT if first is Suppression.VISIT else Why.MAINTENANCE
        return Step(None, why, _first(each.until for each in heard))
    waiting = [each for each in loud if not each.seen_to]
    if not waiting:
        return Step(None, Why.ACKNOWLEDGED, _first(each.due_at for each in loud))
    if timers.told_at is None:
        if now < timers.ready_at:
            return Step(None, Why.WAIT, timers.ready_at)
        return Step(Tell.OPENED, Why.NEW)
    if frozenset(each.id for each in heard) != timers.told:
        if now < (after := max(timers.ready_at, timers.told_at + rule.interval)):
            return Step(None, Why.INTERVAL, after)
        return Step(Tell.UPDATED, Why.CHANGED)
    if now < (after := timers.told_at + rule.repeat):
        return Step(None, Why.REPEAT, after)
    return Step(Tell.REPEATED, Why.STILL_OPEN)


def _first(instants: Iterable[datetime | None]) -> datetime | None:
    return min((each for each in instants if each is not None), default=None)
