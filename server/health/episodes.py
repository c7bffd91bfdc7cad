"""Since when one condition of one subject is wrong, and whether it still is. Pure.

A `Track` is all that is kept of it. Judgements move its standing (`judged`), time opens what
fires and resolves what is clear (`ticked`):
- It opens once it has fired for `opens_after`, and resolves once it has been clear for
  `clears_after`: by positive evidence alone. Unknown neither opens nor resolves anything, and the
  time in which nobody could tell counts for neither.
- A standing cannot have begun before it was last known to be another. What is judged of a time
  before the last judgement's is passed over; of equal times the one that is given later counts, and
  what time has decided by then comes first.
- When something opened or resolved follows from the judgements, not from when time was asked.
- It *flaps* once it has fired `flap_times` within `flap_window`: it is then held, one episode with
  a counter, until it has been clear for `flap_quiet`.
- An acknowledgement binds to what is open now, until that resolves or the acknowledgement is due.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from server.health.judgement import Standing

_NEVER = timedelta(0)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long what must last, before it counts."""

    opens_after: timedelta = _NEVER
    clears_after: timedelta = _NEVER
    flap_times: int = 4
    flap_window: timedelta = timedelta(hours=1)
    flap_quiet: timedelta = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Somebody sees to it, until it resolves or `until`."""

    owner: str
    at: datetime
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Track:
    """One condition of one subject; `opened_at` None: nothing is open.

    `from_at`: since when it stands so, as far as that was known; `noted_at`: when it was first
    judged so; `since`: when what fires, or is open, began; `cleared`: it was clear since it last
    fired; `fired`: when it fired lately; `times`: how often within what is open.
    """

    standing: Standing = Standing.UNKNOWN
    judged_at: datetime | None = None
    noted_at: datetime | None = None
    from_at: datetime | None = None
    since: datetime | None = None
    cleared: bool = True
    opened_at: datetime | None = None
    fired: tuple[datetime, ...] = ()
    times: int = 0
    held: bool = False
    acknowledged: Acknowledgement | None = None


NEW = Track()


class Happening(StrEnum):
    """What befell an episode."""

    OPENED = "opened"
    AGAIN = "again"  # it fired again while it was open
    HELD = "held"  # it flaps
    REARMED = "rearmed"  # its acknowledgement came due
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that befell an episode, and when."""

    what: Happening
    at: datetime


Step = tuple[Track, tuple[Happened, ...]]
"""The track after it, and what happened on the way."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Whether anybody can tell now, and since when everything has been known (None: always)."""

    clear: bool = True
    known_from: datetime | None = None


ALWAYS = Sight()


def judged(
    track: Track,
    standing: Standing,
    *,
    since: datetime,
    now: datetime,
    pace: Pace,
    sight: Sight = ALWAYS,
) -> Step:
    """Return the track after it was judged to stand so since `since`."""
    before = track.judged_at
    if before is not None and now < before:
        return track, ()
    track, happened = ticked(track, now=now, pace=pace, sight=sight)
    if standing is track.standing:
        return replace(track, judged_at=now), happened
    from_at = min(now, since) if before is None else min(now, max(since, before))
    track = replace(track, standing=standing, judged_at=now, noted_at=now, from_at=from_at)
    if standing is Standing.CLEAR:
        track = replace(track, cleared=True)
    elif standing is Standing.FIRING and track.opened_at is None:
        track = replace(track, since=from_at)
    elif standing is Standing.FIRING and track.cleared:
        track, again = _fired(track, Happening.AGAIN, at=now, pace=pace)
        happened += again
    if standing is Standing.FIRING and track.opened_at is not None:
        track = replace(track, cleared=False)
    track, more = ticked(track, now=now, pace=pace, sight=sight)
    return track, happened + more


def ticked(track: Track, *, now: datetime, pace: Pace, sight: Sight = ALWAYS) -> Step:
    """Return the track as time alone has made it by `now`."""
    happened: tuple[Happened, ...] = ()
    known = track.acknowledged
    if known is not None and known.until is not None and known.until <= now:
        track = replace(track, acknowledged=None)
        happened = (Happened(Happening.REARMED, known.until),)
    deadline = _deadline(track, pace, sight) if sight.clear else None
    if deadline is None or now < deadline:
        return track, happened
    if track.standing is Standing.FIRING:
        track = replace(track, opened_at=deadline, cleared=False)
        track, opened = _fired(track, Happening.OPENED, at=deadline, pace=pace)
        return track, happened + opened
    track = replace(
        track, opened_at=None, since=None, times=0, held=False, acknowledged=None, cleared=True
    )
    return track, (*happened, Happened(Happening.RESOLVED, deadline))


def _deadline(track: Track, pace: Pace, sight: Sight) -> datetime | None:
    """Return when it opens or resolves if it goes on to stand as it stands."""
    if track.from_at is None or track.noted_at is None:
        return None
    from_at = max(track.from_at, sight.known_from or track.from_at)
    if track.standing is Standing.FIRING and track.opened_at is None:
        return max(track.noted_at, from_at + pace.opens_after)
    if track.standing is Standing.CLEAR and track.opened_at is not None:
        quiet = max(pace.clears_after, pace.flap_quiet) if track.held else pace.clears_after
        return max(track.noted_at, from_at + quiet)
    return None


def _fired(track: Track, what: Happening, *, at: datetime, pace: Pace) -> Step:
    """Note that it fired; so often within the window is flapping."""
    fired = (*(each for each in track.fired if each > at - pace.flap_window), at)
    fired = fired[-pace.flap_times :]
    track = replace(track, fired=fired, times=track.times + 1)
    happened: tuple[Happened, ...] = (Happened(what, at),)
    if len(fired) >= pace.flap_times and not track.held:
        track = replace(track, held=True)
        happened += (Happened(Happening.HELD, at),)
    return track, happened


def acknowledged(track: Track, by: Acknowledgement | None) -> Track:
    """Return it with somebody who sees to it, or with nobody. ValueError: nothing is open."""
    if track.opened_at is None:
        raise ValueError("nothing is open that anybody could see to")
    return replace(track, acknowledged=by)


def due(track: Track, pace: Pace, sight: Sight = ALWAYS) -> datetime | None:
    """Return when to look at it again if nothing is judged meanwhile."""
    found = [_deadline(track, pace, sight)]
    if track.acknowledged is not None:
        found.append(track.acknowledged.until)
    if track.opened_at is None and track.fired:
        found.append(track.fired[-1] + pace.flap_window)
    return min((each for each in found if each is not None), default=None)


def over(track: Track, pace: Pace, *, now: datetime) -> bool:
    """Whether nothing of it need be remembered: it neither fires nor is open, nor did lately."""
    lately = bool(track.fired) and now < track.fired[-1] + pace.flap_window
    return track.standing is not Standing.FIRING and track.opened_at is None and not lately
