"""Questionnaires: what a kiosk asks, byte for byte.

A questionnaire is a document in canonical form (`content`). SHA-256 of its bytes is its digest; the
first eight bytes of it are the hash that kiosk frames carry. So it is never edited: another wording
is another hash.

    {"format": 1, "languages": ["sv", "en"], "title": TEXT, "welcome": TEXT?, "thanks": TEXT?,
     "questions": [{"kind": "smiley4", "text": TEXT, "low": TEXT?, "high": TEXT?,
                    "options": [TEXT, ...]?, "after": {"question": 0, "answers": [2, 3]}?}, ...]}

TEXT is an object with an ICU message (`message`) in each of the languages, the first of which is
the one that a screen begins with. Questions are asked in their order; one with `after` only of who
gave one of those answers to an earlier one. Their numbers, from 0, and those of the answers
(`Kind`) are what presses carry.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from protocol.content import (
    ContentError,
    Fault,
    Json,
    bad,
    canonical,
    document,
    fields_of,
    integer,
    list_of,
    text_of,
)
from protocol.message import MessageError, parse

LANGUAGES = ("sv", "da", "en")
ARGUMENTS = frozenset({"site"})
MAX_BYTES = 32_768  # eight questions of ten options in three languages have 15 kB
MAX_QUESTIONS = 16  # with 11 answers each: fewer pairs than a frame has totals
MAX_OPTIONS = 9  # the keys 1 to 9
HASH_BYTES = 8


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


def make(value: object) -> Questionnaire:
    """Return the questionnaire that a JSON value says; ContentError."""
    return read(canonical(value))


def read(content: bytes) -> Questionnaire:
    """Return the questionnaire with this content; ContentError if it is none."""
    data = document(content, MAX_BYTES, optional=("welcome", "thanks"),
                   needed=("format", "languages", "title", "questions"))  # fmt: skip
    languages = _languages(data["languages"])
    found: list[Question] = []
    for at, each in enumerate(list_of(data["questions"], "questions", 1, MAX_QUESTIONS)):
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
    data = fields_of(value, where, ("kind", "text"), ("options", "low", "high", "after"))
    try:
        kind = Kind(text_of(data["kind"], f"{where}.kind"))
    except ValueError as error:
        raise ContentError(
            Fault.BAD_FIELD, f"{where}.kind", f"expected {', '.join(Kind)}"
        ) from error
    options: tuple[Texts, ...] = ()
    if kind is Kind.CHOICE:
        given = list_of(data.get("options"), f"{where}.options", 2, MAX_OPTIONS)
        options = tuple(
            _texts(each, f"{where}.options[{at}]", languages) for at, each in enumerate(given)
        )
    elif "options" in data:
        bad(f"{where}.options", f"{kind} has no options of its own")
    scale = {name: _texts_or_none(data, name, languages, f"{where}.") for name in ("low", "high")}
    if (scale["low"] is None) != (scale["high"] is None):
        bad(where, "low and high come together")
    after = None if "after" not in data else _after(data["after"], f"{where}.after", before)
    return Question(
        kind, _texts(data["text"], f"{where}.text", languages), options, scale["low"],
        scale["high"], after,
    )  # fmt: skip


def _after(value: object, where: str, before: Sequence[Question]) -> After:
    data = fields_of(value, where, ("question", "answers"))
    number = integer(data["question"], f"{where}.question", 0, MAX_QUESTIONS)
    if number >= len(before):
        raise ContentError(Fault.BAD_FLOW, where, "names a question that comes no earlier")
    known = before[number].answers
    answers = [
        integer(each, f"{where}.answers", 0, 255)
        for each in list_of(data["answers"], f"{where}.answers", 1, len(known))
    ]
    if sorted(set(answers)) != answers or not set(answers) <= set(known):
        raise ContentError(
            Fault.BAD_FLOW, where, f"expected ascending answers of {known.start} to {known[-1]}"
        )
    return After(number, tuple(answers))


def _languages(value: object) -> tuple[str, ...]:
    given = list_of(value, "languages", 1, len(LANGUAGES))
    found = tuple(text_of(each, "languages") for each in given)
    if len(set(found)) != len(found) or not set(found) <= set(LANGUAGES):
        bad("languages", f"expected some of {', '.join(LANGUAGES)}, each once")
    return found


def _texts(value: object, where: str, languages: tuple[str, ...]) -> Texts:
    data = fields_of(value, where, languages)
    for language in languages:
        text = text_of(data[language], f"{where}.{language}")
        try:
            parse(text, known=ARGUMENTS)
        except MessageError as error:
            raise ContentError(Fault.BAD_TEXT, f"{where}.{language}", str(error)) from error
    return {language: str(data[language]) for language in languages}


def _texts_or_none(
    data: Json, name: str, languages: tuple[str, ...], within: str = ""
) -> Texts | None:
    return _texts(data[name], f"{within}{name}", languages) if name in data else None
