"""The language that devices are searched by, from text to tree and back. Pure.

    model = "DC2" and state = offline and site.region = "Skåne" and firmware < 2.4

- `field = value`, also `!=`, `<`, `<=`, `>`, `>=`; `~` (contains, whatever the case), `!~`;
  `in (a, b)`, `not in (a, b)`; what is not known is `none`, and compares with nothing else.
- `and` binds closer than `or`, `not` closer than both; parentheses as usual. Words in any case.
- A value of letters, digits, `.`, `-`, `_`, `:`, `/`, `+`, `@`, `%`, `*`, `'` may stand bare; any
  other stands in quotes, in which `\\"` and `\\\\` are one character.
- Versions compare as versions, durations are `90s`, `15m`, `2h`, `3d`, instants
  `2026-03-29T09:00Z`, times without zone UTC.

An empty text is every device. `parse(printed(tree)) == tree`. An error names the position (from 1)
and what was expected there. Length, depth and number of comparisons are capped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NoReturn, assert_never

from server.errors import RefusedError
from server.fleet import versions
from server.fleet.lifecycle import State

MOST_CHARACTERS = 2_000
MOST_DEPTH = 12
MOST_COMPARISONS = 60
MOST_VALUES = 100


class Sort(StrEnum):
    """What a field's values are."""

    TEXT = "text"
    CHOICE = "choice"
    VERSION = "version"
    NUMBER = "number"
    DURATION = "duration"
    INSTANT = "instant"


class Op(StrEnum):
    """How a field is compared with one value."""

    IS = "="
    IS_NOT = "!="
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="
    HAS = "~"
    HAS_NOT = "!~"


@dataclass(frozen=True, slots=True)
class Field:
    """Something that devices are searched by; `choices` are the values of a CHOICE."""

    sort: Sort
    meaning: str
    choices: tuple[str, ...] = ()


PRESENCES = ("healthy", "no data", "no heartbeat", "offline planned", "offline", "never seen")
CONDITIONS = (
    *("offline", "offline_planned", "no_data", "no_heartbeat", "flatline"),
    *("stuck_counter", "stuck_button", "reversed", "imbalance", "closed_counting"),
    *("level_shift", "blocked_view", "clock_drift", "reboot_loop", "flapping"),
    *("duplicate_identity", "backlog", "certificate", "storage", "temperature"),
)
"""What can be wrong with a device or its spot, by its code."""

FIELDS: Mapping[str, Field] = {
    "device": Field(Sort.TEXT, "its identity"),
    "serial": Field(Sort.TEXT, "the serial on its label"),
    "model": Field(Sort.TEXT, "its model"),
    "hardware": Field(Sort.TEXT, "its hardware revision"),
    "kind": Field(Sort.CHOICE, "counter or kiosk", ("counter", "kiosk")),
    "lifecycle": Field(Sort.CHOICE, "where it is in its life", tuple(State)),
    "state": Field(Sort.CHOICE, "its presence, as last judged", PRESENCES),
    "firmware": Field(Sort.VERSION, "what runs on it, as it last greeted"),
    "agent": Field(Sort.TEXT, "name and version that it greets with"),
    "heard": Field(Sort.INSTANT, "when it was last heard, to the hour if healthy"),
    "silent": Field(Sort.DURATION, "for how long it was not heard, to the hour if healthy"),
    "site": Field(Sort.TEXT, "the reference of the site where it stands"),
    "site.name": Field(Sort.TEXT, "the site's name"),
    "site.region": Field(Sort.TEXT, "the name of the site's region"),
    "spot": Field(Sort.TEXT, "the reference of the spot where it stands"),
    "spot.name": Field(Sort.TEXT, "the spot's name"),
    "condition": Field(Sort.CHOICE, "what is wrong with it now; it may be several", CONDITIONS),
    "incidents": Field(Sort.NUMBER, "how many open incidents it is part of"),
    "certificate.days": Field(Sort.NUMBER, "days until its certificate ends"),
}
"""What there is to search by, in the order in which it is listed."""

_ORDERED = tuple(op for op in Op if op not in (Op.HAS, Op.HAS_NOT))
OPS: Mapping[Sort, tuple[Op, ...]] = {
    Sort.TEXT: (Op.IS, Op.IS_NOT, Op.HAS, Op.HAS_NOT),
    Sort.CHOICE: (Op.IS, Op.IS_NOT),
    Sort.VERSION: _ORDERED,
    Sort.NUMBER: _ORDERED,
    Sort.DURATION: _ORDERED,
    Sort.INSTANT: _ORDERED,
}
"""What each sort of field may be compared by; `in` and `not in` go with all."""

Typed = str | float | versions.Key | timedelta | datetime


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it was written, and what it says."""

    text: str
    typed: Typed


NONE = Value("none", "")
"""That a field has no value. A text `none` is written in quotes."""


@dataclass(frozen=True, slots=True)
class Compare:
    """A field against one value; `NONE` only with IS and IS_NOT."""

    field: str
    op: Op
    value: Value
    none: bool = False


@dataclass(frozen=True, slots=True)
class Among:
    """A field against several values, one of which it has, or none of which."""

    field: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    """What is not so."""

    inner: "Filter"


@dataclass(frozen=True, slots=True)
class Every:
    """All of several; of none: every device."""

    parts: tuple["Filter", ...] = ()


@dataclass(frozen=True, slots=True)
class Either:
    """At least one of several."""

    parts: tuple["Filter", ...]


Filter = Compare | Among | Not | Every | Either
ALL: Filter = Every()
"""What every device fits."""


class FilterError(RefusedError):
    """A filter cannot be read; `position` counts characters from 1."""

    def __init__(self, position: int, message: str) -> None:
        self.parameter = "filter"
        self.position = position
        super().__init__("bad_filter", f"character {position}: {message}")


# -- words -----------------------------------------------------------------------------------------

_BARE = re.compile(r"[\w.:/+@%*'-]+")
_SIGN = re.compile(r"!=|<=|>=|!~|[=<>~(),]")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_WORDS = ("and", "or", "not", "in", "none")


@dataclass(frozen=True, slots=True)
class _Token:
    at: int
    kind: str  # word, text, sign or end
    text: str

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"`{self.text[:40]}`"

    def is_word(self, word: str) -> bool:
        return self.kind == "word" and self.text.lower() == word


def _tokens(text: str) -> list[_Token]:
    if len(text) > MOST_CHARACTERS:
        raise FilterError(
            MOST_CHARACTERS + 1, f"expected at most {MOST_CHARACTERS} characters, got {len(text)}"
        )
    found: list[_Token] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return [*found, _Token(at + 1, "end", "")]
        if text[at] == "\0":
            raise FilterError(at + 1, "no text has this character (U+0000)")
        if text[at] == '"':
            quoted = _QUOTED.match(text, at)
            if quoted is None:
                raise FilterError(
                    at + 1, 'expected a closing quote, and `\\"` or `\\\\` after each backslash'
                )
            if "\0" in quoted[1]:
                raise FilterError(at + 1, "no text has this character (U+0000)")
            found.append(_Token(at + 1, "text", re.sub(r"\\(.)", r"\1", quoted[1])))
            at = quoted.end()
            continue
        for kind, pattern in (("sign", _SIGN), ("word", _BARE)):
            match = pattern.match(text, at)
            if match is not None:
                found.append(_Token(at + 1, kind, match[0]))
                at = match.end()
                break
        else:
            raise FilterError(at + 1, f"expected a field, a value or a sign, got `{text[at]}`")


# -- text to tree ----------------------------------------------------------------------------------


def parse(text: str) -> Filter:
    """Return what a text asks for; an empty one asks for all. Raises FilterError."""
    reader = _Reader(_tokens(text))
    if reader.now.kind == "end":
        return Every()
    found = reader.either(0)
    if reader.now.kind != "end":
        reader.expected("`and`, `or` or the end")
    return found


class _Reader:
    """Reads tokens by recursive descent; one level of it is one of depth."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._comparisons = 0

    @property
    def now(self) -> _Token:
        return self._tokens[self._at]

    def take(self) -> _Token:
        token = self.now
        self._at += 1
        return token

    def expected(self, what: str) -> NoReturn:
        raise FilterError(self.now.at, f"expected {what}, got {self.now}")

    def either(self, depth: int) -> Filter:
        parts = [self._every(depth)]
        while self.now.is_word("or"):
            self.take()
            parts.append(self._every(depth))
        return either(parts)

    def _every(self, depth: int) -> Filter:
        parts = [self._one(depth)]
        while self.now.is_word("and"):
            self.take()
            parts.append(self._one(depth))
        return every(parts)

    def _one(self, depth: int) -> Filter:
        if depth > MOST_DEPTH:
            raise FilterError(
                self.now.at, f"expected at most {MOST_DEPTH} levels, one within another"
            )
        if self.now.is_word("not"):
            self.take()
            return Not(self._one(depth + 1))
        if self.now.kind == "sign" and self.now.text == "(":
            self.take()
            inner = self.either(depth + 1)
            self._sign(")", "`and`, `or` or `)`")
            return inner
        return self._comparison()

    def _comparison(self) -> Filter:
        self._comparisons += 1
        if self._comparisons > MOST_COMPARISONS:
            raise FilterError(self.now.at, f"expected at most {MOST_COMPARISONS} comparisons")
        token = self.now
        if token.kind != "word" or token.text.lower() in _WORDS:
            self.expected("a field, `not` or `(`")
        name = token.text.lower()
        field = FIELDS.get(name)
        if field is None:
            raise FilterError(token.at, f"no field `{token.text[:40]}`; known: {', '.join(FIELDS)}")
        self.take()
        if self.now.is_word("in"):
            self.take()
            return self._among(name, field, negated=False)
        if self.now.is_word("not"):
            self.take()
            if not self.now.is_word("in"):
                self.expected("`in`")
            self.take()
            return self._among(name, field, negated=True)
        return self._against(name, field)

    def _against(self, name: str, field: Field) -> Compare:
        allowed = OPS[field.sort]
        if self.now.kind != "sign" or self.now.text not in list(Op):
            self.expected(f"{', '.join(f'`{op}`' for op in allowed)}, `in` or `not in`")
        op = Op(self.now.text)
        if op not in allowed:
            self.expected(
                f"{', '.join(f'`{op}`' for op in allowed)}, `in` or `not in` with `{name}`, "
                f"which is a {field.sort}"
            )
        self.take()
        if self.now.is_word("none"):
            if op not in (Op.IS, Op.IS_NOT):
                self.expected("a value: `none` goes with `=` and `!=`")
            self.take()
            return Compare(name, op, NONE, none=True)
        return Compare(name, op, self._value(field))

    def _among(self, name: str, field: Field, *, negated: bool) -> Among:
        self._sign("(", "`(`")
        values = [self._value(field)]
        while self.now.kind == "sign" and self.now.text == ",":
            self.take()
            if len(values) == MOST_VALUES:
                raise FilterError(self.now.at, f"expected at most {MOST_VALUES} values")
            values.append(self._value(field))
        self._sign(")", "`,` or `)`")
        return Among(name, tuple(values), negated)

    def _value(self, field: Field) -> Value:
        token = self.now
        if token.kind not in ("word", "text") or token.is_word("none"):
            self.expected("a value, in quotes or of one word")
        try:
            value = value_of(field, token.text)
        except ValueError as error:
            raise FilterError(token.at, str(error)) from error
        self.take()
        return value

    def _sign(self, sign: str, what: str) -> None:
        if self.now.kind != "sign" or self.now.text != sign:
            self.expected(what)
        self.take()


def every(parts: Sequence[Filter]) -> Filter:
    """Return that all of `parts` hold; of one, itself. What is within another `Every` joins it."""
    flat = [each for part in parts for each in (part.parts if isinstance(part, Every) else (part,))]
    return flat[0] if len(flat) == 1 else Every(tuple(flat))


def either(parts: Sequence[Filter]) -> Filter:
    """Return that one of `parts` holds; of one, itself."""
    flat = [each for p in parts for each in (p.parts if isinstance(p, Either) else (p,))]
    return flat[0] if len(flat) == 1 else Either(tuple(flat))


# -- values ----------------------------------------------------------------------------------------

_DURATION = re.compile(r"(\d{1,7})([smhd])", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,6})?", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def value_of(field: Field, text: str) -> Value:
    """Return a value of a field. Raises ValueError, saying what was expected."""
    match field.sort:
        case Sort.TEXT:
            if not text:
                raise ValueError("expected at least one character; what is not known is `none`")
            return Value(text, text)
        case Sort.CHOICE:
            known = {_spoken(choice): choice for choice in field.choices}
            if _spoken(text) not in known:
                raise ValueError(f"expected one of {', '.join(field.choices)}; got `{text[:40]}`")
            return Value(known[_spoken(text)], known[_spoken(text)])
        case Sort.VERSION:
            key = versions.key(text)
            if key is None:
                raise ValueError(f"expected a version such as 2.4 or 2.4.1-rc1, got `{text[:40]}`")
            return Value(text, key)
        case Sort.NUMBER:
            if not _NUMBER.fullmatch(text):
                raise ValueError(f"expected a number such as 30, got `{text[:40]}`")
            return Value(text, float(text))
        case Sort.DURATION:
            found = _DURATION.fullmatch(text)
            if found is None:
                raise ValueError(f"expected a duration such as 15m, 2h or 3d, got `{text[:40]}`")
            return Value(text, timedelta(**{_UNITS[found[2]]: int(found[1])}))
        case Sort.INSTANT:
            return Value(text, _instant(text))
        case _ as never:
            assert_never(never)


def _spoken(choice: str) -> str:
    return choice.lower().replace("_", " ").replace("-", " ")


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        found = datetime.min.replace(tzinfo=UTC)
    if not 1990 <= found.year <= 2100:
        raise ValueError(f"expected a time such as 2026-03-29T09:00Z, got `{text[:40]}`")
    return found


# -- tree to text ----------------------------------------------------------------------------------


def printed(tree: Filter) -> str:
    """Return the text that `parse` reads as `tree`."""
    match tree:
        case Compare():
            value = "none" if tree.none else _written(tree.value)
            return f"{tree.field} {tree.op} {value}"
        case Among():
            values = ", ".join(_written(value) for value in tree.values)
            return f"{tree.field} {'not in' if tree.negated else 'in'} ({values})"
        case Not():
            return f"not {_inside(tree.inner, Every, Either)}"
        case Every():
            return " and ".join(_inside(part, Either) for part in tree.parts)
        case Either():
            return " or ".join(printed(part) for part in tree.parts)
        case _ as never:
            assert_never(never)


def _inside(tree: Filter, *kinds: type[Every] | type[Either]) -> str:
    return f"({printed(tree)})" if isinstance(tree, kinds) else printed(tree)


def _written(value: Value) -> str:
    text = value.text
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def fields_of(tree: Filter) -> frozenset[str]:
    """Return which fields a filter asks for."""
    match tree:
        case Compare() | Among():
            return frozenset((tree.field,))
        case Not():
            return fields_of(tree.inner)
        case Every() | Either():
            return frozenset().union(*(fields_of(part) for part in tree.parts))
        case _ as never:
            assert_never(never)
