"""The journal: where the update machine is, on disk before anything is done about it.

`journal.json` is replaced whole (written beside, synced, renamed, its folder synced), and bears a
digest of what it says. What can't be read is moved aside, and we begin at IDLE: a trial that the
journal does not know of ends in the slot of before (`machine`, rule 2), nothing is installed twice
for it, and what the server had heard before, it tells us (`machine.Heard`).
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import structlog

from agent.identity import put
from agent.update.machine import step
from agent.update.states import Action, Ended, Event, Failure, Place, Proof, Stage, Update
from protocol.assignment import Assignment, read_assignment
from protocol.content import canonical
from protocol.update import Attempt, Class, Phase, Step

FILE = "journal.json"
ASIDE = "journal.broken.json"
MAX_JOURNAL = 1 << 20

log = structlog.get_logger(__name__)


class JournalError(Exception):
    """What is to be done next can't be written down, so it is not done; `events` are left."""

    def __init__(self, cause: OSError, events: tuple[Event, ...]) -> None:
        self.events = events
        super().__init__(str(cause))


class Hands(Protocol):
    """What does the machine's actions (`hands`)."""

    def do(self, action: Action, update: Update) -> Event | None:
        """Do it, or begin it; return what came of it, None if that is heard of later."""
        ...


class Paper(Protocol):
    """Where a journal is written."""

    def read(self) -> bytes | None:
        """Return what was written last, None if nothing ever was. OSError."""
        ...

    def write(self, content: bytes) -> None:
        """Replace it by this, on disk when it returns; or fail, and leave what was. OSError."""
        ...

    def put_aside(self) -> None:
        """Keep what can't be read under another name, if that can be."""
        ...


class File:
    """A journal's file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def read(self) -> bytes | None:
        """Return the file's bytes."""
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_JOURNAL)
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> None:
        """Replace the file."""
        put(self._path, content)

    def put_aside(self) -> None:
        """Rename the file."""
        with suppress(OSError):
            self._path.replace(self._path.with_name(ASIDE))


class Journal:
    """The machine's place."""

    def __init__(self, paper: Paper, *, now_ms: Callable[[], int]) -> None:
        self._paper = paper
        self._now_ms = now_ms
        self.lost = False
        self.update = self._read()

    def advance(self, event: Event, hands: Hands) -> None:
        """Take an event and all that comes of it. JournalError: what is left is to come again.

        Where something can't be written down, nothing of it is done. The error names the event
        that is to be taken again: it may be one that came of an action which was done.
        """
        waiting = deque([event])
        while waiting:
            update, actions = step(self.update, waiting[0], now_ms=self._now_ms())
            if update != self.update:
                self._write(update, waiting)
            waiting.popleft()
            for action in actions:
                came = hands.do(action, self.update)
                if came is not None:
                    waiting.append(came)

    def _write(self, update: Update, waiting: Iterable[Event]) -> None:
        try:
            self._paper.write(encode(update))
        except OSError as error:
            raise JournalError(error, tuple(waiting)) from error
        if update.stage is not self.update.stage:
            log.info("update", stage=update.stage.value, was=self.update.stage.value)
        self.update = update

    def _read(self) -> Update:
        try:
            content = self._paper.read()
            return Update() if content is None else decode(content)
        except (OSError, ValueError) as error:
            log.error("the journal can't be read: it begins anew", error=str(error))
            self.lost = True
            self._paper.put_aside()
            return Update()


def encode(update: Update) -> bytes:
    """Return a journal's bytes."""
    value = {
        "stage": update.stage.value,
        "job": _text(update.job),
        "offer": _text(update.offer),
        "places": [asdict(each) for each in update.places],
        "waited_ms": update.waited_ms,
        "ready_ms": update.ready_ms,
        "later_ms": update.later_ms,
        "reason": None if update.reason is None else update.reason.value,
        "proofs": sorted(each.value for each in update.proofs),
        "booted": update.booted,
        "tries": update.tries,
        "failure": None if update.failure is None else _failure_value(update.failure),
        "seq": update.seq,
        "told_bytes": update.told_bytes,
        "steps": [
            [*_attempt_value(each.attempt), each.seq, each.phase.value, each.code,
             _kind_value(each.kind), each.bytes, each.at_ms, each.tail]
            for each in update.steps
        ],
        "ended": [
            [*_attempt_value(each.attempt), each.seq, each.phase.value, each.code,
             _kind_value(each.kind)]
            for each in update.ended
        ],
        "tail": list(update.tail),
    }  # fmt: skip
    said = canonical(value)
    return canonical({"sha256": hashlib.sha256(said).hexdigest(), "update": value})


def decode(content: bytes) -> Update:
    """Return what a journal says; ValueError if it is torn, altered or none."""
    try:
        whole = json.loads(content)
        value: Mapping[str, object] = whole["update"]
        if hashlib.sha256(canonical(value)).hexdigest() != whole["sha256"]:
            raise ValueError("its digest is another")
        return _update(whole["update"])
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"it is none: {error!r}") from error


def _update(value: dict[str, object]) -> Update:
    places, proofs, steps, ended, tail = (
        _list(value[name]) for name in ("places", "proofs", "steps", "ended", "tail")
    )
    failure = value["failure"]
    return Update(
        stage=Stage(str(value["stage"])),
        job=_assignment(value["job"]),
        offer=_assignment(value["offer"]),
        places=tuple(Place(**each) for each in places if isinstance(each, dict)),
        waited_ms=_int(value["waited_ms"]),
        ready_ms=_int(value["ready_ms"]),
        later_ms=_int(value["later_ms"]),
        reason=None if value["reason"] is None else Phase(str(value["reason"])),
        proofs=frozenset(Proof(str(each)) for each in proofs),
        booted=value["booted"] is True,
        tries=_int(value["tries"]),
        failure=None if failure is None else _failure(_list(failure)),
        seq=_int(value["seq"]),
        told_bytes=_int(value["told_bytes"]),
        steps=tuple(_step(_list(each)) for each in steps),
        ended=tuple(_ended(_list(each)) for each in ended),
        tail=tuple(str(each) for each in tail),
    )


def _text(job: Assignment | None) -> str | None:
    return None if job is None else job.content().decode()


def _assignment(value: object) -> Assignment | None:
    return None if value is None else read_assignment(str(value).encode())


def _failure_value(failure: Failure) -> list[str]:
    return [failure.kind.value, failure.code]


def _failure(row: Sequence[object]) -> Failure:
    return Failure(Class(str(row[0])), str(row[1]))


def _attempt_value(attempt: Attempt) -> tuple[str, int]:
    return attempt.execution, attempt.number


def _kind_value(kind: Class | None) -> str:
    return "" if kind is None else kind.value


def _kind(value: object) -> Class | None:
    return None if value == "" else Class(str(value))


def _step(row: Sequence[object]) -> Step:
    name, number, seq, phase, code, kind, size, at_ms, tail = row
    return Step(
        Attempt(str(name), _int(number)),
        _int(seq),
        Phase(str(phase)),
        str(code),
        _kind(kind),
        _int(size),
        _int(at_ms),
        str(tail),
    )


def _ended(row: Sequence[object]) -> Ended:
    name, number, seq, phase, code, kind = row
    return Ended(
        Attempt(str(name), _int(number)), _int(seq), Phase(str(phase)), str(code), _kind(kind)
    )


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r}")
    return value


def _int(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, got {value!r}")
    return value
