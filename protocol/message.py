"""Messages of a questionnaire, in the part of ICU's MessageFormat that a kiosk's page can show.

    text  {name}  {name, plural, =0 {…} one {…} other {# …}}  {name, select, a {…} other {…}}

An apostrophe before a brace quotes up to the next apostrophe; two make one. `agent/screen/
message.js` is the twin that shows them; a test holds both to the same examples.
"""

import re
from dataclasses import dataclass

MAX_DEPTH = 3
MAX_CASES = 12
_NAME = re.compile(r"\s*([a-z][a-z0-9_]{0,31})\s*")
_CASE = re.compile(r"\s*(=[0-9]{1,6}|[a-z][a-z0-9_]{0,31})\s*\{")
_FORMS = frozenset({"zero", "one", "two", "few", "many", "other"})


class MessageError(ValueError):
    """A message that can't be shown: what was expected, and at which character."""


@dataclass(frozen=True, slots=True)
class Argument:
    """What is put in: a value as it is, or the one of `cases` that fits it."""

    name: str
    way: str = ""  # "plural" or "select"
    cases: tuple[tuple[str, "Message"], ...] = ()


Part = str | Argument
Message = tuple[Part, ...]


def parse(text: str, *, known: frozenset[str] = frozenset()) -> Message:
    """Return a message's parts; MessageError if it is malformed or puts in what is not `known`."""
    message, at = _parts(text, 0, known=known, depth=0)
    if at != len(text):
        raise MessageError(f"a '}}' that closes nothing at character {at + 1}")
    return message


def _parts(text: str, at: int, *, known: frozenset[str], depth: int) -> tuple[Message, int]:
    """Return the parts up to the brace that closes them, or the end."""
    if depth > MAX_DEPTH:
        raise MessageError(f"cases within cases, more than {MAX_DEPTH} deep")
    parts: list[Part] = []
    plain: list[str] = []
    while at < len(text) and text[at] != "}":
        if text[at] == "'":
            found, at = _quoted(text, at)
            plain.append(found)
        elif text[at] == "{":
            argument, at = _argument(text, at + 1, known=known, depth=depth)
            parts += ["".join(plain), argument] if plain else [argument]
            plain = []
        else:
            plain.append(text[at])
            at += 1
    if plain:
        parts.append("".join(plain))
    return tuple(parts), at


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Return what an apostrophe stands for, and where the text goes on."""
    following = text[at + 1 : at + 2]
    if following == "'":
        return "'", at + 2
    if following not in {"{", "}", "#"}:
        return "'", at + 1
    end = text.find("'", at + 1)
    end = len(text) if end < 0 else end
    return text[at + 1 : end], end + 1


def _argument(text: str, at: int, *, known: frozenset[str], depth: int) -> tuple[Argument, int]:
    named = _NAME.match(text, at)
    if named is None:
        raise MessageError(f"expected a name at character {at + 1}")
    name, at = named[1], named.end()
    if name not in known:
        raise MessageError(f"{name!r} is nothing that can be put in")
    if text.startswith("}", at):
        return Argument(name), at + 1
    way = re.compile(r",\s*(plural|select)\s*,").match(text, at)
    if way is None:
        raise MessageError(f"expected '}}', plural or select at character {at + 1}")
    cases, at = _cases(text, way.end(), way[1], known=known, depth=depth)
    if "other" not in dict(cases):
        raise MessageError(f"{name!r} lacks its case 'other'")
    return Argument(name, way[1], cases), at


def _cases(
    text: str, at: int, way: str, *, known: frozenset[str], depth: int
) -> tuple[tuple[tuple[str, Message], ...], int]:
    cases: dict[str, Message] = {}
    while (case := _CASE.match(text, at)) is not None:
        label = case[1]
        exact = label.startswith("=")
        if label in cases or len(cases) == MAX_CASES:
            raise MessageError(f"case {label!r} stands twice, or there are over {MAX_CASES}")
        if (way == "plural" and not exact and label not in _FORMS) or (way == "select" and exact):
            raise MessageError(f"{way} has no case {label!r}")
        cases[label], at = _parts(text, case.end(), known=known, depth=depth + 1)
        if not text.startswith("}", at):
            raise MessageError(f"case {label!r} is not closed")
        at += 1
    ended = re.compile(r"\s*\}").match(text, at)
    if ended is None:
        raise MessageError(f"expected a case or '}}' at character {at + 1}")
    return tuple(cases.items()), ended.end()
