"""Plans: what one device is to show, and when; and the envelope that a plan travels in.

A plan is a document in canonical form (`content`):

    {"format": 1, "device": "fk-…", "site": "Vasagatan", "zone": "Europe/Stockholm",
     "show": [{"questionnaire": 64 hex digits, "from": "2026-11-01"?, "until": "2026-12-24"?,
               "weekdays": [1, 7]?, "hours": [540, 1080]?}, ...]}

The first of `show` that is in force is shown, else the built-in smileys. Days are the site's own,
`until` included, weekdays 1 (Monday) to 7, hours in minutes of the day; where they end before they
begin, they end on the next day.

It travels in an envelope (`envelope`) of the kind "plan" with one field more, "questionnaires":
their texts. The plan names each by its whole digest, so that one signature holds for all.
"""

import re
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import NoReturn

from protocol.content import (
    FORMAT,
    ContentError,
    Fault,
    Json,
    canonical,
    document,
    fields_of,
    integer,
    list_of,
    long_text,
    matching,
    parsed,
    text_of,
)
from protocol.envelope import Sealed
from protocol.questionnaire import MAX_BYTES, Questionnaire, read

MAX_SHOWN = 16
MAX_ENVELOPE = 262_144
SIGNED = b"vestibule plan 1\n"
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Shown:
    """A questionnaire, by its digest, and when it is in force, in the site's time."""

    digest: str
    since: date | None = None
    until: date | None = None
    weekdays: tuple[int, ...] = ()  # none: all
    hours: tuple[int, int] | None = None

    @property
    def always(self) -> bool:
        """True if no clock is needed to know that it is in force."""
        return (self.since, self.until, self.weekdays, self.hours) == (None, None, (), None)

    def in_force(self, local: datetime) -> bool:
        """True if it is to be shown at this local time."""
        day, minute = local.date(), local.hour * 60 + local.minute
        if self.hours is None:
            return self._on(day)
        opens, closes = self.hours
        if opens < closes:
            return opens <= minute < closes and self._on(day)
        if minute >= opens:
            return self._on(day)
        return minute < closes and self._on(day - timedelta(days=1))

    def _on(self, day: date) -> bool:
        if self.weekdays and day.isoweekday() not in self.weekdays:
            return False
        return (self.since is None or self.since <= day) and (
            self.until is None or day <= self.until
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a device is to show."""

    device: str
    site: str
    zone: str
    show: tuple[Shown, ...]

    def content(self) -> bytes:
        """Return it in canonical form."""
        return canonical(
            {
                "format": FORMAT,
                "device": self.device,
                "site": self.site,
                "zone": self.zone,
                "show": [_shown_value(each) for each in self.show],
            }
        )


def _shown_value(shown: Shown) -> Json:
    value: dict[str, object] = {"questionnaire": shown.digest}
    if shown.since is not None:
        value["from"] = shown.since.isoformat()
    if shown.until is not None:
        value["until"] = shown.until.isoformat()
    if shown.weekdays:
        value["weekdays"] = list(shown.weekdays)
    if shown.hours is not None:
        value["hours"] = list(shown.hours)
    return value


def read_plan(content: bytes) -> Plan:
    """Return the plan with this content; ContentError if it is none."""
    data = document(content, MAX_BYTES, needed=("format", "device", "site", "zone", "show"))
    shown = list_of(data["show"], "show", 0, MAX_SHOWN)
    return Plan(
        text_of(data["device"], "device"),
        text_of(data["site"], "site"),
        text_of(data["zone"], "zone"),
        tuple(_shown(each, f"show[{at}]") for at, each in enumerate(shown)),
    )


def _shown(value: object, where: str) -> Shown:
    data = fields_of(value, where, ("questionnaire",), ("from", "until", "weekdays", "hours"))
    named = f"{where}.questionnaire"
    digest = matching(_DIGEST, data["questionnaire"], named, "64 hexadecimal digits")
    hours = None
    if "hours" in data:
        opens, closes = (
            integer(each, f"{where}.hours", 0, 1440)
            for each in list_of(data["hours"], f"{where}.hours", 2, 2)
        )
        hours = (opens, closes)
    weekdays: tuple[int, ...] = ()
    if "weekdays" in data:
        given = list_of(data["weekdays"], f"{where}.weekdays", 1, 7)
        weekdays = tuple(integer(each, f"{where}.weekdays", 1, 7) for each in given)
    return shown(
        digest,
        since=_day(data.get("from"), f"{where}.from"),
        until=_day(data.get("until"), f"{where}.until"),
        weekdays=weekdays,
        hours=hours,
        where=where,
    )


def shown(
    digest: str,
    *,
    since: date | None = None,
    until: date | None = None,
    weekdays: tuple[int, ...] = (),
    hours: tuple[int, int] | None = None,
    where: str = "",
) -> Shown:
    """Return an entry of a plan; ContentError if it can never be in force."""

    def refuse(field: str, message: str) -> NoReturn:
        raise ContentError(Fault.BAD_SCHEDULE, f"{where}.{field}".lstrip("."), message)

    if since is not None and until is not None and until < since:
        refuse("until", "the last day comes before the first")
    if any(not 1 <= day <= 7 for day in weekdays) or sorted(set(weekdays)) != list(weekdays):
        refuse("weekdays", "expected ascending days, 1 (Monday) to 7")
    if hours is not None and not (0 <= hours[0] < 1440 and 0 < hours[1] <= 1440):
        refuse("hours", "expected minutes of the day, 0 to 1440")
    if hours is not None and hours[0] == hours[1]:
        refuse("hours", "they end as they begin")
    return Shown(digest, since, until, weekdays, hours)


def _day(value: object, where: str) -> date | None:
    if value is None:
        return None
    try:
        text = text_of(value, where)
        if len(text) != 10:
            raise ValueError(text)
        return date.fromisoformat(text)
    except ValueError as error:
        raise ContentError(Fault.BAD_SCHEDULE, where, "expected a day") from error


# -- the envelope ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Envelope(Sealed):
    """A plan with its questionnaires, as they travel; nothing of it is checked yet."""

    KIND = "plan"
    PREFIX = SIGNED
    questionnaires: tuple[bytes, ...] = field(default=(), repr=False)

    def value(self) -> Json:
        """Return it as JSON holds it."""
        sealed = Sealed.value(self)  # super() does not know a class that dataclass made anew
        return {**sealed, "questionnaires": [each.decode() for each in self.questionnaires]}


def read_envelope(content: bytes) -> Envelope:
    """Take an envelope apart; ContentError if it is none."""
    data = parsed(content, MAX_ENVELOPE)
    fields = fields_of(data, "", ("plan", "questionnaires", "signature", "chain"))
    contents = list_of(fields["questionnaires"], "questionnaires", 0, MAX_SHOWN)
    texts = tuple(long_text(each, "questionnaires") for each in contents)
    return Envelope(*Envelope.parts(fields), texts)


def opened(envelope: Envelope, *, device: str) -> tuple[Plan, dict[str, Questionnaire]]:
    """Return the plan and its questionnaires by digest; who signed it is checked elsewhere.

    ContentError: it is another device's, or one that it names is not here as it was named.
    """
    plan = read_plan(envelope.text)
    if plan.device != device:
        raise ContentError(Fault.WRONG_DEVICE, "plan", f"is of {plan.device[:40]!r}")
    found = {each.digest: each for each in map(read, envelope.questionnaires)}
    if set(found) != {each.digest for each in plan.show}:
        raise ContentError(
            Fault.WRONG_DIGEST, "questionnaires", "are not those that the plan names"
        )
    return plan, found
