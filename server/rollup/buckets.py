"""Time buckets of a site's zone: 15 minutes to months, with days of 23 to 25 hours.

Decided here: a bucket is half open and begins at an instant; days are local calendar days, weeks
are ISO weeks (Monday first), an hour is a local hour, so the hour that the clock repeats is two
buckets, told apart by `fold`. Instants are whole UTC seconds since 1970 (`_s`). Offsets of zones
are multiples of 15 minutes, as every zone's have been since 1972.

Invariant: the buckets of a range are contiguous and cover it; those at its edges are whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import assert_never
from zoneinfo import ZoneInfo

QUARTER_S = 900
HOUR_S = 3600


class Size(StrEnum):
    """How long a bucket is."""

    MINUTE = "1m"
    QUARTER = "15m"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    @property
    def is_days(self) -> bool:
        """Whether buckets of this size are made of whole local days."""
        return self in (Size.DAY, Size.WEEK, Size.MONTH)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket: [start_s, end_s), its local label, and 1 in `fold` if the clock repeats it."""

    start_s: int
    end_s: int
    start_day: date
    label: str
    start_utc: str
    end_utc: str
    fold: int = 0


@lru_cache(maxsize=64)
def zone(name: str) -> ZoneInfo:
    """Return the zone called `name`; ZoneInfoNotFoundError (a KeyError) if there is none."""
    return ZoneInfo(name)


@lru_cache(maxsize=100_000)
def day_start(name: str, day: date) -> int:
    """Return the first instant of a local day: midnight, or the end of the gap that swallows it."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone(name)).timestamp())


def local(name: str, instant_s: int) -> datetime:
    """Return an instant as the zone's clock shows it; `fold` is 1 in the second pass."""
    return datetime.fromtimestamp(instant_s, zone(name))


def utc_text(instant_s: int) -> str:
    """Return an instant as ISO 8601 with Z."""
    return datetime.fromtimestamp(instant_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(name: str, value: date | datetime) -> int:
    """Return the instant of a date's start, an aware time, or a local time of the zone."""
    if not isinstance(value, datetime):
        return day_start(name, value)
    if value.tzinfo is None:
        value = value.replace(tzinfo=zone(name))
    return int(value.timestamp())


@lru_cache(maxsize=32)  # the largest, eight days of minutes, weighs 5 MB
def buckets(
    name: str, size: Size, *, since: date | datetime, until: date | datetime
) -> tuple[Bucket, ...]:
    """Return every bucket of `size` that holds a moment of [since, until), in order."""
    start_s, end_s = instant(name, since), instant(name, until)
    if start_s >= end_s:
        return ()
    first, last = local(name, start_s).date(), local(name, end_s - 1).date()
    if size.is_days:
        return tuple(_of_days(name, size, first=first, last=last))
    found: list[Bucket] = []
    for offset in range((last - first).days + 1):
        found += _within_day(name, size, first + timedelta(days=offset))
    return tuple(b for b in found if b.end_s > start_s and b.start_s < end_s)


def bucket_count(size: Size, span_s: int) -> int:
    """Return about how many buckets cover `span_s`, to refuse a query before it is made."""
    match size:
        case Size.MINUTE:
            return span_s // 60 + 1
        case Size.QUARTER:
            return span_s // QUARTER_S + 1
        case Size.HOUR:
            return span_s // HOUR_S + 1
        case Size.DAY:
            return span_s // 86_400 + 1
        case Size.WEEK:
            return span_s // 604_800 + 1
        case Size.MONTH:
            return span_s // 2_419_200 + 1
        case _:
            assert_never(size)


def first_day(size: Size, day: date) -> date:
    """Return the first day of the day, ISO week or month that holds `day`."""
    if size is Size.WEEK:
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if size is Size.MONTH else day


def _next_day(size: Size, day: date) -> date:
    if size is Size.WEEK:
        return day + timedelta(days=7)
    if size is Size.MONTH:
        return (day.replace(day=28) + timedelta(days=4)).replace(day=1)
    return day + timedelta(days=1)


def day_label(size: Size, day: date) -> str:
    """Return `2026-03-29`, `2026-W13` or `2026-03`."""
    if size is Size.WEEK:
        year, week, _ = day.isocalendar()
        return f"{year}-W{week:02}"
    return day.isoformat()[:7] if size is Size.MONTH else day.isoformat()


def _of_days(name: str, size: Size, *, first: date, last: date) -> Iterator[Bucket]:
    day = first_day(size, first)
    while day <= last:
        following = _next_day(size, day)
        yield _bucket(
            day_start(name, day),
            day_start(name, following),
            start_day=day,
            label=day_label(size, day),
        )
        day = following


def _within_day(name: str, size: Size, day: date) -> tuple[Bucket, ...]:
    start_s, end_s = day_start(name, day), day_start(name, day + timedelta(days=1))
    if size is Size.HOUR:
        edges = hour_edges(name, day)
    else:
        edges = tuple(range(start_s, end_s, 60 if size is Size.MINUTE else QUARTER_S))
    found: list[Bucket] = []
    for at, following in zip(edges, (*edges[1:], end_s), strict=True):
        shown = local(name, at)
        label = shown.isoformat(timespec="minutes")
        found.append(_bucket(at, following, start_day=day, label=label, fold=shown.fold))
    return tuple(found)


@lru_cache(maxsize=20_000)
def hour_edges(name: str, day: date) -> tuple[int, ...]:
    """Return where the local hours of a day begin, both passes of a repeated one included."""
    start_s, end_s = day_start(name, day), day_start(name, day + timedelta(days=1))
    if not has_transition(name, day):
        return tuple(range(start_s, end_s, HOUR_S))
    edges: list[int] = []
    last: tuple[int, int] | None = None
    for at in range(start_s, end_s, QUARTER_S):
        shown = local(name, at)
        if (shown.hour, shown.fold) != last:
            edges.append(at)
            last = shown.hour, shown.fold
    return tuple(edges)


def has_transition(name: str, day: date) -> bool:
    """Whether the clock moves in a local day, or at its start: a midnight that is skipped."""
    start_s, end_s = day_start(name, day), day_start(name, day + timedelta(days=1))
    return local(name, start_s - 1).utcoffset() != local(name, end_s - 1).utcoffset()


def _bucket(start_s: int, end_s: int, *, start_day: date, label: str, fold: int = 0) -> Bucket:
    return Bucket(start_s, end_s, start_day, label, utc_text(start_s), utc_text(end_s), fold)
