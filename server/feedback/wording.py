"""What a kiosk's questionnaire asks, in words: its questions and options, as one reads them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import asyncpg

from protocol import questionnaire as wire
from protocol.content import ContentError
from protocol.message import Message, parse
from server.feedback.answers import Question


@dataclass(frozen=True, slots=True)
class Worded:
    """A question's words and, of a choice, its options', in a `language` that it has."""

    language: str
    text: str
    options: tuple[str, ...] = ()


async def worded(
    connection: asyncpg.Connection, hashes: Collection[int], *, language: str, site: str
) -> dict[Question, Worded]:
    """Return the questions of questionnaires whose content is known, in a language or their own."""
    rows = await connection.fetch(
        "select hash, content from questionnaires where hash = any($1) and content is not null",
        list(hashes),
    )
    found: dict[Question, Worded] = {}
    for hash_, content in rows:
        try:
            asked = wire.read(content)
        except ContentError:
            continue
        spoken = language if language in asked.languages else asked.languages[0]
        for number, each in enumerate(asked.questions):
            options = tuple(told(option[spoken], {"site": site}) for option in each.options)
            text = told(each.text[spoken], {"site": site})
            found[Question(hash_, number)] = Worded(spoken, text, options)
    return found


def told(text: str, values: Mapping[str, str]) -> str:
    """Return a message with its values put in; what it may put in are texts, so `other` is said."""
    return _told(parse(text, known=wire.ARGUMENTS), values)


def _told(message: Message, values: Mapping[str, str]) -> str:
    parts: list[str] = []
    for part in message:
        if isinstance(part, str):
            parts.append(part)
        elif not part.cases:
            parts.append(values.get(part.name, ""))
        else:
            cases = dict(part.cases)
            parts.append(_told(cases.get(values.get(part.name, ""), cases["other"]), values))
    return "".join(parts)
