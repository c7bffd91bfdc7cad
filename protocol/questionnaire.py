"""Questionnaires: what a kiosk asks, byte for byte, and the plan of which it shows when.

A questionnaire is a JSON object in canonical form: keys sorted, no spaces, UTF-8 as it is, no
fraction anywhere. SHA-256 of these bytes is its digest; the first eight bytes of it are the hash
that kiosk frames carry. So it is never edited: another wording is another hash.

    {"format": 1, "languages": ["sv", "en"], "title": TEXT, "welcome": TEXT?, "thanks": TEXT?,
     "questions": [{"kind": "smiley4", "text": TEXT, "low": TEXT?, "high": TEXT?,
                    "options": [TEXT, ...]?, "after": {"question": 0, "answers": [2, 3]}?}, ...]}

TEXT is an object with an ICU message (`message`) in each of the languages, the first of which is
the one that a screen begins with. Questions are asked in their order; one with `after` only of who
gave one of those answers to an earlier one. Their numbers, from 0, and those of the answers
(`Kind`) are what presses carry.

A plan is what one device is to show, in canonical form too:

    {"format": 1, "device": "fk-…", "site": "Vasagatan", "zone": "Europe/Stockholm",
     "show": [{"questionnaire": 64 hex digits, "from": "2026-11-01"?, "until": "2026-12-24"?,
               "weekdays": [1, 7]?, "hours": [540, 1080]?}, ...]}

The first of `show` that is in force is shown, else the built-in smileys. Days are the site's own,
`until` included, weekdays 1 (Monday) to 7, hours in minutes of the day; where they end before they
begin, they end on the next day.

It travels in an envelope: {"plan": its text, "questionnaires": [their texts], "signature":
base64 of ECDSA P-256 with SHA-256 over `SIGNED` and the plan, "chain": PEM}. The plan names each
questionnaire by its whole digest, so that one signature holds for all.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import NoReturn, assert_never

from protocol.message import MessageError, parse

FORMAT = 1
LANGUAGES = ("sv", "da", "en")
ARGUMENTS = frozenset({"site"})
MAX_BYTES = 32_768  # eight questions of ten options in three languages have 15 kB
MAX_TEXT = 300
MAX_QUESTIONS = 16  # with 11 answers each: fewer pairs than a frame has totals
MAX_OPTIONS = 9  # the keys 1 to 9
MAX_SHOWN = 16
MAX_ENVELOPE = 262_144
HASH_BYTES = 8
SIGNED = b"vestibule plan 1\n"
SIGNER = "urn:vestibule:service:svc-content"
"""The name of the one certificate that may sign plans."""
_DIGEST = re.compile("[0-9a-f]{64}")


class Fault(StrEnum):
    """Why a questionnaire, a plan or an envelope is refused."""

    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    NOT_CANONICAL = "not_canonical"
    UNKNOWN_FORMAT = "unknown_format"
    BAD_FIELD = "bad_field"
    BAD_TEXT = "bad_text"
    BAD_FLOW = "bad_flow"
    BAD_SCHEDULE = "bad_schedule"
    WRONG_DEVICE = "wrong_device"
    WRONG_DIGEST = "wrong_digest"
    UNTRUSTED = "untrusted"


class QuestionnaireError(ValueError):
    """What is refused, and `where` in it."""

    def __init__(self, fault: Fault, where: str, message: str) -> None:
        self.fault = fault
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)


class Kind(StrEnum):
    """What a question asks for, and so how its answers are numbered.

    Smileys from the best (0); NPS 0 to 10; CSAT 1 to 5 and CES 1 to 7, from the worst; options from
    0; a statement 1 (disagree) to 5 (agree).
    """

    SMILEY3 = "smiley3"
    SMILEY4 = "smiley4"
    SMILEY5 = "smiley5"
    NPS = "nps"
    CSAT = "csat"
    CES = "ces"
    CHOICE = "choice"
    STATEMENT = "statement"


Texts = Mapping[str, str]
Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class After:
    """Ask only who gave one of `answers` to an earlier question."""

    question: int
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `low` and `high` say what the ends of a scale mean."""

    kind: Kind
    text: Texts
    options: tuple[Texts, ...] = ()
    low: Texts | None = None
    high: Texts | None = None
    after: After | None = None

    @property
    def answers(self) -> range:
        """The numbers that an answer may have."""
        match self.kind:
            case Kind.SMILEY3:
                return range(3)
            case Kind.SMILEY4:
                return range(4)
            case Kind.SMILEY5:
                return range(5)
            case Kind.NPS:
                return range(11)
            case Kind.CSAT | Kind.STATEMENT:
                return range(1, 6)
            case Kind.CES:
                return range(1, 8)
            case Kind.CHOICE:
                return range(len(self.options))
            case _:
                assert_never(self.kind)


@dataclass(frozen=True, slots=True)
class Questionnaire:
    """What is asked, and the bytes that say so."""

    content: bytes
    languages: tuple[str, ...]
    title: Texts
    questions: tuple[Question, ...]
    welcome: Texts | None = None
    thanks: Texts | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def hash(self) -> bytes:
        """What frames carry."""
        return hashlib.sha256(self.content).digest()[:HASH_BYTES]


def canonical(value: object) -> bytes:
    """Return a JSON value in its one form; QuestionnaireError if it has none."""
    try:
        _whole(value)
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise QuestionnaireError(Fault.NOT_JSON, "", f"no JSON value: {error}") from error


def _whole(value: object) -> None:
    if isinstance(value, float):
        raise ValueError("fractions have no one form")
    if isinstance(value, Mapping):
        for each in value.values():
            _whole(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            _whole(each)


def make(value: object) -> Questionnaire:
    """Return the questionnaire that a JSON value says; QuestionnaireError."""
    return read(canonical(value))


def read(content: bytes) -> Questionnaire:
    """Return the questionnaire with this content; QuestionnaireError if it is none."""
    data = _object(content, MAX_BYTES, optional=("welcome", "thanks"),
                   needed=("format", "languages", "title", "questions"))  # fmt: skip
    languages = _languages(data["languages"])
    found: list[Question] = []
    for at, each in enumerate(_list(data["questions"], "questions", 1, MAX_QUESTIONS)):
        found.append(_question(each, f"questions[{at}]", languages, found))
    return Questionnaire(
        content,
        languages,
        _texts(data["title"], "title", languages),
        tuple(found),
        _texts_or_none(data, "welcome", languages),
        _texts_or_none(data, "thanks", languages),
    )


def _question(
    value: object, where: str, languages: tuple[str, ...], before: Sequence[Question]
) -> Question:
    data = _fields(value, where, ("kind", "text"), ("options", "low", "high", "after"))
    try:
        kind = Kind(_text(data["kind"], f"{where}.kind"))
    except ValueError as error:
        raise QuestionnaireError(
            Fault.BAD_FIELD, f"{where}.kind", f"expected {', '.join(Kind)}"
        ) from error
    options: tuple[Texts, ...] = ()
    if kind is Kind.CHOICE:
        given = _list(data.get("options"), f"{where}.options", 2, MAX_OPTIONS)
        options = tuple(
            _texts(each, f"{where}.options[{at}]", languages) for at, each in enumerate(given)
        )
    elif "options" in data:
        _bad(f"{where}.options", f"{kind} has no options of its own")
    scale = {name: _texts_or_none(data, name, languages, f"{where}.") for name in ("low", "high")}
    if (scale["low"] is None) != (scale["high"] is None):
        _bad(where, "low and high come together")
    after = None if "after" not in data else _after(data["after"], f"{where}.after", before)
    return Question(
        kind, _texts(data["text"], f"{where}.text", languages), options, scale["low"],
        scale["high"], after,
    )  # fmt: skip


def _after(value: object, where: str, before: Sequence[Question]) -> After:
    data = _fields(value, where, ("question", "answers"))
    number = _integer(data["question"], f"{where}.question", 0, MAX_QUESTIONS)
    if number >= len(before):
        raise QuestionnaireError(Fault.BAD_FLOW, where, "names a question that comes no earlier")
    known = before[number].answers
    answers = [
        _integer(each, f"{where}.answers", 0, 255)
        for each in _list(data["answers"], f"{where}.answers", 1, len(known))
    ]
    if sorted(set(answers)) != answers or not set(answers) <= set(known):
        raise QuestionnaireError(
            Fault.BAD_FLOW, where, f"expected ascending answers of {known.start} to {known[-1]}"
        )
    return After(number, tuple(answers))


# -- the plan ----------------------------------------------------------------------------------


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
    """Return the plan with this content; QuestionnaireError if it is none."""
    data = _object(content, MAX_BYTES, needed=("format", "device", "site", "zone", "show"))
    shown = _list(data["show"], "show", 0, MAX_SHOWN)
    return Plan(
        _text(data["device"], "device"),
        _text(data["site"], "site"),
        _text(data["zone"], "zone"),
        tuple(_shown(each, f"show[{at}]") for at, each in enumerate(shown)),
    )


def _shown(value: object, where: str) -> Shown:
    data = _fields(value, where, ("questionnaire",), ("from", "until", "weekdays", "hours"))
    digest = _text(data["questionnaire"], f"{where}.questionnaire")
    if not _DIGEST.fullmatch(digest):
        _bad(f"{where}.questionnaire", "expected 64 hexadecimal digits")
    hours = None
    if "hours" in data:
        opens, closes = (
            _integer(each, f"{where}.hours", 0, 1440)
            for each in _list(data["hours"], f"{where}.hours", 2, 2)
        )
        hours = (opens, closes)
    weekdays: tuple[int, ...] = ()
    if "weekdays" in data:
        given = _list(data["weekdays"], f"{where}.weekdays", 1, 7)
        weekdays = tuple(_integer(each, f"{where}.weekdays", 1, 7) for each in given)
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
    """Return an entry of a plan; QuestionnaireError if it can never be in force."""

    def refuse(field: str, message: str) -> NoReturn:
        raise QuestionnaireError(Fault.BAD_SCHEDULE, f"{where}.{field}".lstrip("."), message)

    if since is not None and until is not None and until < since:
        refuse("until", "the last day comes before the first")
    if any(not 1 <= day <= 7 for day in weekdays) or sorted(set(weekdays)) != list(weekdays):
        refuse("weekdays", "expected ascending days, 1 (Monday) to 7")
    if hours is not None and not (0 <= hours[0] < 1440 and 0 < hours[1] <= 1440):
        refuse("hours", "expected minutes of the day, 0 to 1440")
    if hours is not None and hours[0] == hours[1]:
        refuse("hours", "they end as they begin")
    return Shown(digest, since, until, weekdays, hours)


# -- the envelope ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Envelope:
    """A plan with its questionnaires, as they travel; nothing of it is checked yet."""

    plan: bytes
    questionnaires: tuple[bytes, ...]
    signature: bytes
    chain: str

    def content(self) -> bytes:
        """Return the bytes that travel."""
        return canonical(
            {
                "plan": self.plan.decode(),
                "questionnaires": [each.decode() for each in self.questionnaires],
                "signature": base64.b64encode(self.signature).decode(),
                "chain": self.chain,
            }
        )


def read_envelope(content: bytes) -> Envelope:
    """Take an envelope apart; QuestionnaireError if it is none."""
    data = _parsed(content, MAX_ENVELOPE)
    fields = _fields(data, "", ("plan", "questionnaires", "signature", "chain"))
    contents = _list(fields["questionnaires"], "questionnaires", 0, MAX_SHOWN)
    try:
        signature = base64.b64decode(_text(fields["signature"], "signature"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise QuestionnaireError(Fault.BAD_FIELD, "signature", "expected base64") from error
    return Envelope(
        _long(fields["plan"], "plan"),
        tuple(_long(each, "questionnaires") for each in contents),
        signature,
        _long(fields["chain"], "chain").decode(),
    )


def opened(envelope: Envelope, *, device: str) -> tuple[Plan, dict[str, Questionnaire]]:
    """Return the plan and its questionnaires by digest; who signed it is checked elsewhere.

    QuestionnaireError: it is another device's, or one that it names is not here as it was named.
    """
    plan = read_plan(envelope.plan)
    if plan.device != device:
        raise QuestionnaireError(Fault.WRONG_DEVICE, "plan", f"is of {plan.device[:40]!r}")
    found = {each.digest: each for each in map(read, envelope.questionnaires)}
    if set(found) != {each.digest for each in plan.show}:
        raise QuestionnaireError(
            Fault.WRONG_DIGEST, "questionnaires", "are not those that the plan names"
        )
    return plan, found


# -- values ------------------------------------------------------------------------------------


def _object(
    content: bytes, most: int, *, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Json:
    """Return a document in canonical form and of our format."""
    value = _parsed(content, most)
    if canonical(value) != content:
        raise QuestionnaireError(Fault.NOT_CANONICAL, "", "expected canonical JSON")
    if not isinstance(value, dict):
        _bad("", "expected an object")
    if value.get("format") != FORMAT or value["format"] is True:
        raise QuestionnaireError(Fault.UNKNOWN_FORMAT, "format", f"expected {FORMAT}")
    return _fields(value, "", needed, optional)


def _parsed(content: bytes, most: int) -> object:
    if len(content) > most:
        raise QuestionnaireError(Fault.TOO_LARGE, "", f"{len(content)} bytes; at most {most}")
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise QuestionnaireError(Fault.NOT_JSON, "", f"expected JSON: {error}") from error
    return value


def _bad(where: str, message: str) -> NoReturn:
    raise QuestionnaireError(Fault.BAD_FIELD, where, message)


def _fields(
    value: object, where: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Json:
    if not isinstance(value, dict):
        _bad(where, "expected an object")
    for name in needed:
        if name not in value:
            _bad(f"{where}.{name}".lstrip("."), "is missing")
    for name in value:
        if name not in (*needed, *optional):
            _bad(f"{where}.{str(name)[:40]}".lstrip("."), "is not known")
    return value


def _list(value: object, where: str, least: int, most: int) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        _bad(where, f"expected a list of {least} to {most}")
    return value


def _integer(value: object, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        _bad(where, f"expected a whole number from {low} to {high}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise QuestionnaireError(
            Fault.BAD_TEXT, where, f"expected 1 to {MAX_TEXT} characters that can be printed"
        )
    return value


def _long(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        _bad(where, "expected text")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise QuestionnaireError(Fault.BAD_TEXT, where, "expected text") from error


def _day(value: object, where: str) -> date | None:
    if value is None:
        return None
    try:
        text = _text(value, where)
        if len(text) != 10:
            raise ValueError(text)
        return date.fromisoformat(text)
    except ValueError as error:
        raise QuestionnaireError(Fault.BAD_SCHEDULE, where, "expected a day") from error


def _languages(value: object) -> tuple[str, ...]:
    given = _list(value, "languages", 1, len(LANGUAGES))
    found = tuple(_text(each, "languages") for each in given)
    if len(set(found)) != len(found) or not set(found) <= set(LANGUAGES):
        _bad("languages", f"expected some of {', '.join(LANGUAGES)}, each once")
    return found


def _texts(value: object, where: str, languages: tuple[str, ...]) -> Texts:
    data = _fields(value, where, languages)
    for language in languages:
        text = _text(data[language], f"{where}.{language}")
        try:
            parse(text, known=ARGUMENTS)
        except MessageError as error:
            raise QuestionnaireError(Fault.BAD_TEXT, f"{where}.{language}", str(error)) from error
    return {language: str(data[language]) for language in languages}


def _texts_or_none(
    data: Json, name: str, languages: tuple[str, ...], within: str = ""
) -> Texts | None:
    return _texts(data[name], f"{within}{name}", languages) if name in data else None
