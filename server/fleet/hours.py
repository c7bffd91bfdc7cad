"""When a site is open, as people write it: a part of OpenStreetMap's opening hours. Pure.

    Mo-Fr 10:00-19:00; Sa 10:00-17:00; Su off
    Mo-Th 10:00-14:00,15:00-19:00; Fr,Sa 22:00-02:00
    24/7; 2026-12-24 10:00-14:00 "Christmas Eve"; 2026-12-25 off

Decided here: rules are set apart by `;`, and a later rule for the same day replaces the earlier
one's. A day that no rule names is closed. A span that ends at or before its beginning ends on the
day after; `26:00` says the same. Nothing at all is `24/7`. Anything else of OpenStreetMap's
notation (PH, months, weeks, sunset) is refused by name, never read as something near to it.
"""

import re
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from server.fleet.checks import FieldError, day, line

Span = tuple[int, int]
"""Wall minutes after local midnight; the end may pass 1440."""

DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
MOST_SPANS = 8  # of one day
MOST_OWN_DAYS = 400
_DAY_MIN = 1440
_RULE = re.compile(r'(?P<when>\S+)\s+(?P<hours>[^"]*?)\s*(?:"(?P<note>[^"]*)")?')
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")
_FIELD = "hours"


@dataclass(frozen=True, slots=True)
class OwnDay:
    """A day's own hours instead of its weekday's; no spans: closed."""

    day: date
    spans: tuple[Span, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Opening:
    """A site's hours: by weekday, Monday first (None: it never closes), and days of their own."""

    weekly: tuple[tuple[Span, ...], ...] | None = None
    own_days: tuple[OwnDay, ...] = ()

    def __str__(self) -> str:
        return write(self)


ALWAYS = Opening()


def read(text: str) -> Opening:
    """Return the hours that `text` writes. Raises FieldError (`hours`) naming the wrong rule."""
    weekly: dict[int, tuple[Span, ...]] = {}
    own: dict[date, OwnDay] = {}
    always = False
    for rule in _rules(text):
        if rule == "24/7":
            always = True
            continue
        match = _RULE.fullmatch(rule)
        if match is None:
            raise FieldError(
                _FIELD, f"{rule[:60]!r}: expected days and hours, as in `Mo 10:00-19:00`"
            )
        spans, note = _spans(match["hours"], rule), line(match["note"] or "", _FIELD)
        when = match["when"]
        if _DATE.fullmatch(when):
            found = day(when, _FIELD)
            assert found is not None
            own[found] = OwnDay(found, spans, note)
            continue
        if note:
            raise FieldError(_FIELD, f"{rule[:60]!r}: only a date takes a note")
        for number in _days(when, rule):
            weekly[number] = spans
    if always and weekly:
        raise FieldError(_FIELD, "24/7 and hours of weekdays contradict each other")
    week = tuple(weekly.get(number, ()) for number in range(7)) if weekly else None
    return checked(Opening(week, tuple(own[each] for each in sorted(own))))


def _rules(text: str) -> list[str]:
    """Return the rules of `text`; a `;` within a note ends none."""
    parts = re.findall(r'(?:[^;"]|"[^"]*")+', text) if text.count('"') % 2 == 0 else None
    if parts is None:
        raise FieldError(_FIELD, "a note's quotation mark is not closed")
    return [part.strip() for part in parts if part.strip()]


def checked(opening: Opening) -> Opening:
    """Return `opening` in its one form: spans in order. Raises FieldError for what cannot be."""
    weekly = None
    if opening.weekly is not None:
        if len(opening.weekly) != 7:
            raise FieldError(_FIELD, "a week has seven days")
        weekly = tuple(
            _ordered(spans, where=DAYS[number]) for number, spans in enumerate(opening.weekly)
        )
        if not any(weekly):
            raise FieldError(_FIELD, "no day has hours: say by `closes_on` that a site has ended")
    if len(opening.own_days) > MOST_OWN_DAYS:
        raise FieldError(_FIELD, f"more than {MOST_OWN_DAYS} days of their own")
    own = sorted(opening.own_days, key=lambda each: each.day)
    for before, after in pairwise(own):
        if before.day == after.day:
            raise FieldError(_FIELD, f"{after.day} is given twice")
    return Opening(
        weekly,
        tuple(
            OwnDay(each.day, _ordered(each.spans, where=str(each.day)), _note(each.note))
            for each in own
        ),
    )


def _note(text: str) -> str:
    text = line(text, _FIELD)
    if '"' in text:
        raise FieldError(_FIELD, "a note has no quotation marks")
    return text


def write(opening: Opening) -> str:
    """Return `opening` as `read` reads it, days of the same hours together."""
    rules = []
    if opening.weekly is None:
        rules = ["24/7"] if opening.own_days else []
    else:
        rules = [
            f"{_named(first, last)} {_written(spans)}"
            for first, last, spans in stretches(opening.weekly)
            if spans
        ]
    for each in opening.own_days:
        note = f' "{each.note}"' if each.note else ""
        rules.append(f"{each.day} {_written(each.spans)}{note}")
    return "; ".join(rules)


def stretches(
    weekly: tuple[tuple[Span, ...], ...],
) -> list[tuple[int, int, tuple[Span, ...]]]:
    """Return runs of weekdays with the same hours: first day, last day, spans."""
    found: list[tuple[int, int, tuple[Span, ...]]] = []
    for number, spans in enumerate(weekly):
        if found and found[-1][2] == spans:
            found[-1] = (found[-1][0], number, spans)
        else:
            found.append((number, number, spans))
    return found


def clock(minute: int) -> str:
    """Return a wall minute as a clock shows it; 24:00 for the end of a day."""
    if minute > _DAY_MIN:
        minute -= _DAY_MIN
    return f"{minute // 60:02}:{minute % 60:02}"


def _named(first: int, last: int) -> str:
    return DAYS[first] if first == last else f"{DAYS[first]}-{DAYS[last]}"


def _written(spans: tuple[Span, ...]) -> str:
    if not spans:
        return "off"
    return ",".join(f"{_time(low)}-{_end(low, high)}" for low, high in spans)


def _end(low: int, high: int) -> str:
    """Return an end so that it is read as the same: `02:00`, or `26:00` where that is another."""
    return _time(high - _DAY_MIN) if _DAY_MIN < high <= low + _DAY_MIN else _time(high)


def _time(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _days(text: str, rule: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise FieldError(
                _FIELD, f"{rule[:60]!r}: {part[:20]!r} is no weekday (Mo to Su) and no date"
            )
        low = DAYS.index(first)
        high = DAYS.index(last) if dash else low
        found += [number % 7 for number in range(low, high + (1 if high >= low else 8))]
    return found


def _spans(text: str, rule: str) -> tuple[Span, ...]:
    if text in ("off", "closed"):
        return ()
    found: list[Span] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not dash:
            raise FieldError(_FIELD, f"{rule[:60]!r}: expected hours such as 10:00-19:00, or off")
        opens, closes = _minute(low, rule), _minute(high, rule)
        found.append((opens, closes if closes > opens else closes + _DAY_MIN))
    return tuple(found)


def _minute(text: str, rule: str) -> int:
    match = _TIME.fullmatch(text.strip())
    if match is None or int(match[1]) > 48:
        raise FieldError(_FIELD, f"{rule[:60]!r}: {text[:20]!r} is no time such as 09:30")
    return int(match[1]) * 60 + int(match[2])


def _ordered(spans: tuple[Span, ...], *, where: str) -> tuple[Span, ...]:
    if len(spans) > MOST_SPANS:
        raise FieldError(_FIELD, f"{where}: more than {MOST_SPANS} spans")
    found = tuple(sorted(spans))
    for low, high in found:
        if not 0 <= low < _DAY_MIN or not low < high <= 2 * _DAY_MIN:
            raise FieldError(_FIELD, f"{where}: {_time(low)}-{_time(high)} is no span of a day")
    for (_, end), (low, _) in pairwise(found):
        if low < end:
            raise FieldError(_FIELD, f"{where}: two spans overlap at {clock(low)}")
    return found
