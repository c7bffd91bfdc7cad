"""Commands: each is written down before it is begun, and so done once, whatever is sent again.

`commands.json` holds what was begun, with its end; it is replaced whole. An end is told at each
asking until the server has stored it; the names of the last `MOST` stay, so that a server that was
restored from a backup is told the old end and not obeyed anew.

Over a power cut: what had begun and has no end at the next start was interrupted, and is not begun
again. Of a restart the next start is the end that was wanted.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agent import identity
from protocol.content import ContentError
from protocol.settings import Value
from protocol.state import (
    DONE,
    FAILED,
    INTERRUPTED,
    MAX_HEARD,
    MAX_TEXT,
    REBOOT,
    RUNNING,
    Order,
    Outcome,
    outcome_value,
    read_outcome,
)

FILE = "commands.json"
MOST = 128

log = structlog.get_logger(__name__)


class FailedError(Exception):
    """A command can't be done; `code` says why."""

    def __init__(self, code: str, result: Mapping[str, Value] | None = None) -> None:
        self.code = code
        self.result = result or {}
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Entry:
    """A command that was begun; `kernel` names the machine's start at that time."""

    outcome: Outcome
    kind: str
    kernel: str
    heard: bool = False


Act = Callable[[Order], Awaitable[Mapping[str, Value]]]
"""Does a command and returns its result; FailedError."""


class Orders:
    """The journal of commands in `state`; `kernel` names the machine's own start."""

    def __init__(self, state: Path, *, kernel: str) -> None:
        self._path = state / FILE
        self._kernel = kernel
        self._entries = {each.outcome.command: each for each in read(self._path)}
        open_ = [each for each in self._entries.values() if each.outcome.state == RUNNING]
        for each in open_:
            self._entries[each.outcome.command] = replace(each, outcome=self._ended(each))
        if open_:
            self._write()

    def _ended(self, entry: Entry) -> Outcome:
        """Return the end of what the last start has begun."""
        if entry.kind == REBOOT:
            machine = bool(self._kernel) and entry.kernel != self._kernel
            how = "machine" if machine else "agent"
            return replace(entry.outcome, state=DONE, result={"restarted": how})
        return replace(entry.outcome, state=FAILED, code=INTERRUPTED)

    def unheard(self) -> tuple[Outcome, ...]:
        """Return what the server is to hear, the oldest first."""
        found = [each.outcome for each in self._entries.values() if not each.heard]
        return tuple(found[:MAX_HEARD])

    def heard(self, commands: Iterable[str]) -> None:
        """The server has stored the ends of these."""
        known = [self._entries[name] for name in commands if name in self._entries]
        fresh = [each for each in known if not each.heard and each.outcome.state != RUNNING]
        for each in fresh:
            self._entries[each.outcome.command] = replace(each, heard=True)
        if fresh:
            self._write()

    def fresh(self, orders: Iterable[Order]) -> list[Order]:
        """Return those that were never begun; of what is over the server is told again."""
        found = []
        for order in orders:
            entry = self._entries.get(order.command)
            if entry is None:
                found.append(order)
            elif entry.heard:
                self._entries[order.command] = replace(entry, heard=False)
        return found

    def begin(self, order: Order) -> None:
        """Write down that a command is begun now."""
        self._entries[order.command] = Entry(
            Outcome(order.command, RUNNING), order.kind, self._kernel
        )
        over = [name for name, each in self._entries.items() if each.heard]
        for name in over[: max(0, len(self._entries) - MOST)]:
            del self._entries[name]
        self._write()

    def withdraw(self, order: Order) -> None:
        """Forget a command that was not done after all: the server wants it no more."""
        del self._entries[order.command]
        self._write()

    async def carry_out(self, order: Order, act: Act) -> None:
        """Do a command that was begun, and write down its end."""
        outcome = Outcome(order.command, DONE)
        try:
            outcome = replace(outcome, result=await act(order))
        except FailedError as error:
            outcome = replace(outcome, state=FAILED, code=error.code, result=error.result)
        except Exception as error:  # whatever it was, the server is to hear of it
            log.exception("a command failed", command=order.command, kind=order.kind)
            said = {"error": short(str(error) or type(error).__name__)}
            outcome = replace(outcome, state=FAILED, code="error", result=said)
        entry = self._entries[order.command]
        self._entries[order.command] = replace(entry, outcome=outcome)
        self._write()
        log.info("command ended", command=order.command, kind=order.kind, state=outcome.state)

    def _write(self) -> None:
        said = [
            {
                **outcome_value(each.outcome),
                "kind": each.kind,
                "kernel": each.kernel,
                "heard": each.heard,
            }
            for each in self._entries.values()
        ]
        identity.put(self._path, json.dumps(said).encode())


def read(path: Path) -> list[Entry]:
    """Return what the journal holds, in order; nothing if it is not there or can't be read."""
    try:
        said = json.loads(path.read_bytes())
        return [
            Entry(read_outcome(each), str(each["kind"]), str(each["kernel"]), each["heard"] is True)
            for each in said
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, ContentError) as error:
        log.error("kept commands not read", error=str(error))
        return []


def short(text: str) -> str:
    """Return a text as a result may hold it: printable, and cut at the wire's longest."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_TEXT]
