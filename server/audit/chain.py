"""The chain's arithmetic: what a row's hash covers, and where a chain is broken. Pure.

hash = SHA-256 over the canonical JSON (sorted keys, no spaces, UTF-8) of
[chain, number, at in microseconds since 1970, actor, act, subject, detail, previous in hex].
The first row's previous is 32 zero bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

BEGINNING = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the chain. `detail` holds JSON values only."""

    chain: int
    number: int
    at: datetime
    actor: str
    act: str
    subject: str
    detail: Mapping[str, object]
    previous: bytes
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Break:
    """Where a chain does not hold, and why."""

    chain: int
    number: int
    why: str


def digest(entry: Entry) -> bytes:
    """Return the hash that `entry` must have."""
    middle = said(entry.at, entry.actor, entry.act, entry.subject, entry.detail)
    text = f'[{entry.chain},{entry.number},{middle},"{entry.previous.hex()}"]'
    return hashlib.sha256(text.encode()).digest()


def said(at: datetime, actor: str, act: str, subject: str, detail: Mapping[str, object]) -> str:
    """Return what of the hashed text does not depend on the row's place in the chain."""
    content = [(at - _EPOCH) // timedelta(microseconds=1), actor, act, subject, detail]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text[1:-1]


def breaks(entries: Iterable[Entry], *, head: tuple[int, bytes] | None = None) -> list[Break]:
    """Return where one chain, given in order, was altered, cut or added to.

    `head` is a number and hash noted elsewhere earlier: the chain must still hold that row.
    """
    found: list[Break] = []
    number, previous, held = 0, BEGINNING, head is None
    chain = 0
    for entry in entries:
        chain = entry.chain
        number += 1
        if entry.number != number:
            found.append(Break(chain, entry.number, f"expected number {number}"))
            number = entry.number
        if entry.previous != previous:
            found.append(Break(chain, entry.number, "does not follow the row before it"))
        if entry.hash != digest(entry):
            found.append(Break(chain, entry.number, "was altered"))
        previous = entry.hash
        held = held or (entry.number, entry.hash) == head
    if not held and head is not None:
        found.append(Break(chain, head[0], "the row that was noted elsewhere is not there"))
    return found
