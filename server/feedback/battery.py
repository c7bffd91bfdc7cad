"""A battery of short statements for one's own phone: what may be asked, and who is asked which.

Decided here:
- What one visitor is asked takes at most `BUDGET_S` by the median seconds of its items; a battery
  that takes longer is refused with the sum and what each item costs.
- Of up to `MOST_STATEMENTS` statements each visitor gets 5 to 7 (planned missing): as many of every
  factor as there is room for, and which ones is drawn by a seed that is given in.
- A version is its content: canonical JSON, known by its SHA-256, never edited.

The seconds are medians of reading and answering on a phone until those measured replace them; they
are assumptions, stated in `SECONDS`, and the measured p90 stands beside every result.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import assert_never

import msgspec

BUDGET_S = 55.0
MOST_STATEMENTS, MOST_FACTORS, MOST_OPTIONS, MOST_CHOICES = 18, 8, 7, 3
LEAST_SHOWN, MOST_SHOWN = 5, 7
MOST_CHARACTERS = 160
MOST_WORDS = 600  # of what is told, and not asked
MOST_CONTENT = 64_000
LANGUAGES = ("sv", "da", "no", "fi", "en")
_KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")


class ItemKind(StrEnum):
    """What an item asks for.

    A statement is answered 1 (disagree) to 5 (agree), the overall score 0 to 10, a choice by its
    option's number from 0 (a declared segment), a text in the visitor's own words.
    """

    STATEMENT = "statement"
    OVERALL = "overall"
    CHOICE = "choice"
    TEXT = "text"


SECONDS: Mapping[ItemKind, tuple[float, float]] = {
    ItemKind.STATEMENT: (2.4, 0.06),
    ItemKind.OVERALL: (3.5, 0.06),
    ItemKind.CHOICE: (3.0, 0.06),
    ItemKind.TEXT: (9.0, 0.06),  # most leave it empty; who writes takes longer
}
"""Median seconds of an item: to answer it, and to read one more character of it (200 words/min)."""


class Population(StrEnum):
    """Who answers. Never pooled: only visitors make what a site is scored by."""

    VISITORS = "visitors"
    EMPLOYEES = "employees"
    AUDIT = "journey audit"


class BatteryError(ValueError):
    """A battery that may not be published; `where` is the field, `costs` the items' seconds."""

    def __init__(self, where: str, message: str, costs: Sequence[tuple[str, float]] = ()) -> None:
        self.where, self.costs = where, tuple(costs)
        super().__init__(message)


class Factor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What some statements together measure: a name, the visitors' goal, and what may be done."""

    key: str
    name: dict[str, str]
    goal: str = ""
    action: str = ""


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One item; `factor` is a statement's alone, `options` a choice's. Texts by language.

    `reverse`: agreeing speaks against the factor.
    """

    key: str
    kind: ItemKind
    text: dict[str, str]
    factor: str = ""
    reverse: bool = False
    options: list[dict[str, str]] = []


class Battery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All that a survey may ask, and why the answer matters, in the organisation's own words."""

    languages: list[str]
    title: dict[str, str]
    why: dict[str, str]
    factors: list[Factor]
    items: list[Item]
    shown: int = 6

    def of(self, kind: ItemKind) -> list[Item]:
        return [item for item in self.items if item.kind is kind]

    @property
    def by_key(self) -> dict[str, Item]:
        return {item.key: item for item in self.items}


def content_of(battery: Battery) -> bytes:
    """Return the canonical JSON that a version is known by."""
    return msgspec.json.encode(battery, order="sorted")


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def seconds(item: Item) -> float:
    """Return an item's median seconds, in the language in which it is longest."""
    fixed, each = SECONDS[item.kind]
    words = max((len(text) for text in item.text.values()), default=0)
    options = sum(
        max((len(text) for text in option.values()), default=0) for option in item.options
    )
    return fixed + each * (words + options)


def asked_seconds(battery: Battery) -> float:
    """Return the median seconds of the longest set that one visitor may be asked."""
    statements = sorted(map(seconds, battery.of(ItemKind.STATEMENT)), reverse=True)
    others = [seconds(item) for item in battery.items if item.kind is not ItemKind.STATEMENT]
    return sum(statements[: battery.shown]) + sum(others)


def check(battery: Battery) -> None:
    """Raise BatteryError for what may not be published; the budget comes last."""
    if not battery.languages or set(battery.languages) - set(LANGUAGES):
        raise BatteryError("languages", f"expected some of {', '.join(LANGUAGES)}")
    if len(set(battery.languages)) != len(battery.languages):
        raise BatteryError("languages", "a language stands there twice")
    _texts(battery, battery.title, "title", MOST_CHARACTERS)
    _texts(battery, battery.why, "why", MOST_WORDS)
    _check_factors(battery)
    _check_items(battery)
    total = asked_seconds(battery)
    if total > BUDGET_S:
        costs = sorted(((item.key, seconds(item)) for item in battery.items), key=lambda c: -c[1])
        said = ", ".join(f"{key} {cost:.1f} s" for key, cost in costs[:8])
        raise BatteryError(
            "items",
            f"one visitor would be asked for {total:.1f} s, and the limit is {BUDGET_S:.0f} s; "
            f"the longest items: {said}",
            costs,
        )
    if len(content_of(battery)) > MOST_CONTENT:
        raise BatteryError("", f"a battery has at most {MOST_CONTENT} bytes")


def _check_factors(battery: Battery) -> None:
    keys = [factor.key for factor in battery.factors]
    if not 1 <= len(keys) <= MOST_FACTORS or len(set(keys)) != len(keys):
        raise BatteryError("factors", f"expected 1 to {MOST_FACTORS} factors, each once")
    for factor in battery.factors:
        if not _KEY.fullmatch(factor.key):
            raise BatteryError("factors", f"{factor.key[:40]!r} is no key such as 'staff'")
        _texts(battery, factor.name, f"factor {factor.key}", MOST_CHARACTERS)
        if max(len(factor.goal), len(factor.action)) > MOST_WORDS:
            raise BatteryError("factors", f"{factor.key}: goal or action is too long")
        if not any(item.factor == factor.key for item in battery.items):
            raise BatteryError("factors", f"no statement measures {factor.key}")


def _check_items(battery: Battery) -> None:
    keys = [item.key for item in battery.items]
    if len(set(keys)) != len(keys):
        raise BatteryError("items", "two items have the same key")
    statements = battery.of(ItemKind.STATEMENT)
    if not 1 <= len(statements) <= MOST_STATEMENTS:
        raise BatteryError("items", f"expected 1 to {MOST_STATEMENTS} statements")
    least = min(LEAST_SHOWN, len(statements))
    if not least <= battery.shown <= MOST_SHOWN:
        raise BatteryError("shown", f"a visitor gets {LEAST_SHOWN} to {MOST_SHOWN} statements")
    if len(battery.of(ItemKind.OVERALL)) != 1:
        raise BatteryError("items", "expected one overall score, which factors are held against")
    if len(battery.of(ItemKind.TEXT)) > 1 or len(battery.of(ItemKind.CHOICE)) > MOST_CHOICES:
        raise BatteryError("items", f"at most one text and {MOST_CHOICES} choices")
    known = {factor.key for factor in battery.factors}
    for item in battery.items:
        if not _KEY.fullmatch(item.key):
            raise BatteryError("items", f"{item.key[:40]!r} is no key such as 'greeted'")
        _texts(battery, item.text, f"item {item.key}", MOST_CHARACTERS)
        if (item.factor in known) is not (item.kind is ItemKind.STATEMENT):
            raise BatteryError("items", f"{item.key}: a statement, and it alone, names a factor")
        if item.kind is ItemKind.CHOICE:
            if not 2 <= len(item.options) <= MOST_OPTIONS:
                raise BatteryError("items", f"{item.key}: expected 2 to {MOST_OPTIONS} options")
            for option in item.options:
                _texts(battery, option, f"item {item.key}", MOST_CHARACTERS)
        elif item.options:
            raise BatteryError("items", f"{item.key}: only a choice has options")


def _texts(battery: Battery, texts: Mapping[str, str], where: str, most: int) -> None:
    field = where.split()[0] + ("s" if " " in where else "")
    if set(texts) != set(battery.languages):
        raise BatteryError(field, f"{where}: expected a text in each of {battery.languages}")
    for text in texts.values():
        if not text.strip() or len(text) > most or not text.replace("\n", " ").isprintable():
            raise BatteryError(field, f"{where}: a text has 1 to {most} printable characters")


def draw(battery: Battery, seed: bytes) -> tuple[str, ...]:
    """Return the keys of what the visitor of this seed is asked, in its order.

    Overall score first, so that no statement colours it; then statements, by turns of the factors;
    then choices and the text. Each factor gets its share of places, or one more by lot; which of
    its statements fill them is drawn evenly, so that any two meet in some visitors.
    """
    # no secret: whoever asked twice must be asked the same
    rng = random.Random(seed)  # noqa: S311
    piles = [
        rng.sample(keys, len(keys))
        for factor in battery.factors
        if (keys := [item.key for item in battery.items if item.factor == factor.key])
    ]
    rng.shuffle(piles)
    statements: list[str] = []
    while len(statements) < battery.shown and any(piles):
        for pile in piles:
            if pile and len(statements) < battery.shown:
                statements.append(pile.pop())
    overall = [item.key for item in battery.of(ItemKind.OVERALL)]
    last = [item.key for kind in (ItemKind.CHOICE, ItemKind.TEXT) for item in battery.of(kind)]
    return (*overall, *statements, *last)


def answer_of(item: Item, text: str) -> int | None:
    """Return a form's answer as a number, None for none. Raises BatteryError for what is none."""
    if not text:
        return None
    match item.kind:
        case ItemKind.STATEMENT:
            least, most = 1, 5
        case ItemKind.OVERALL:
            least, most = 0, 10
        case ItemKind.CHOICE:
            least, most = 0, len(item.options) - 1
        case ItemKind.TEXT:
            raise BatteryError(item.key, "a text is no number")
        case _:
            assert_never(item.kind)
    if not (text.isascii() and text.isdecimal() and len(text) <= 2 and least <= int(text) <= most):
        raise BatteryError(item.key, f"expected {least} to {most}; got {text[:20]!r}")
    return int(text)
