"""Whether anybody can tell how the devices are: the state that lies over all of theirs. Pure.

The server sends itself a canary through the broker. What ingest has stored of it is the
*watermark*: everything that was said before it has been heard. While it stands still (the broker,
the database or ingest is away or behind), while the devices of a broker that was started again
come back, and while so many at so many sites vanish together that it must be our own uplink,
everything is unknown, which is one state and not ten thousand. It ends once what was open has
come back, or has had the time for it.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from server.health.judgement import PLATFORM, Condition, Judgement, Standing
from server.health.presence import DRAIN

CANARY = timedelta(seconds=5)
STALL = 3 * CANARY
"""How far the watermark may lie behind before nobody can tell."""
LOSS_WINDOW = timedelta(seconds=30)
LEAST_LOST, LEAST_SITES, SHARE_LOST = 20, 5, 0.2
"""So many devices, at so many sites, and that share of all, lost within the window: our uplink."""
SHARE_GONE = 0.5
SETTLED = timedelta(seconds=120)
"""By then every keepalive has ended (1.5 x 45 s): fewer gone than SHARE_GONE went by themselves."""


class Cause(StrEnum):
    """Why nobody can tell."""

    BEHIND = "behind"  # the watermark stands still
    BROKER = "broker"  # it was started again, and the devices come back
    UPLINK = "uplink"  # so many vanished at once that we did


@dataclass(frozen=True, slots=True)
class Platform:
    """What is known of it; `cause` None: all is known. `broker_seen`: the start dealt with."""

    cause: Cause | None = None
    since: datetime | None = None
    broker_seen: datetime | None = None


@dataclass(frozen=True, slots=True)
class Signs:
    """What the database tells: the watermark, since when this broker runs, and sessions.

    `open`: sessions that are open; `before`: those of them that are older than the broker;
    `lost`, `sites`: lost within LOSS_WINDOW, and at how many sites; `gone`: lost since the
    platform became unknown, or shortly before.
    """

    watermark: datetime | None
    broker_since: datetime | None = None
    open: int = 0
    before: int = 0
    lost: int = 0
    sites: int = 0
    gone: int = 0


def turned(platform: Platform, signs: Signs, *, now: datetime) -> Platform:
    """Return what is known now."""
    started = signs.broker_since
    heard = signs.watermark or started
    if heard is None:
        return platform  # nothing has begun yet
    if now - heard > STALL:
        return _unknown(platform, Cause.BEHIND, heard)
    if started is not None and started != platform.broker_seen:
        first = platform.broker_seen is None and signs.open == 0
        platform = replace(platform, broker_seen=started)
        if not first:
            return replace(_unknown(platform, Cause.BROKER, started), cause=Cause.BROKER)
    if _vanished(signs):
        return _unknown(platform, Cause.UPLINK, now)
    if platform.cause is None or _lasts(platform, signs, now=now):
        return platform
    return replace(platform, cause=None, since=None)


def _unknown(platform: Platform, cause: Cause, since: datetime) -> Platform:
    """Return it unknown; a state that lasts goes on since when it began."""
    if platform.cause is not None:
        return platform
    return replace(platform, cause=cause, since=since)


def _vanished(signs: Signs) -> bool:
    enough = signs.lost >= LEAST_LOST and signs.sites >= LEAST_SITES
    return enough and signs.lost >= SHARE_LOST * (signs.open + signs.lost)


def _lasts(platform: Platform, signs: Signs, *, now: datetime) -> bool:
    """Whether it is still unknown, though the watermark moves again."""
    if platform.cause is Cause.UPLINK:
        assert platform.since is not None
        if now - platform.since < SETTLED:
            return signs.gone > 0
        return signs.gone >= LEAST_LOST and signs.gone >= SHARE_GONE * (signs.open + signs.gone)
    started = signs.broker_since
    return started is not None and signs.before > 0 and now < started + DRAIN


def judgement(platform: Platform, *, now: datetime) -> Judgement:
    """Return the judgement of the platform itself."""
    if platform.cause is None or platform.since is None:
        return Judgement(PLATFORM, Condition.PLATFORM_UNKNOWN, Standing.CLEAR, now)
    return Judgement(
        PLATFORM,
        Condition.PLATFORM_UNKNOWN,
        Standing.FIRING,
        platform.since,
        {"cause": platform.cause.value, "since_s": (now - platform.since).total_seconds()},
        platform.since,
    )
