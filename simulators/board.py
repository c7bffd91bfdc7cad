"""What a simulated device keeps when its power fails: journal, slots, links, record, floors.

Each change to a `Board` counts as two instants, before it and after it; at one of them the power
may fail, so that a device is tried at every place at which it can be cut off.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.update.launch import (
    COMMITTED,
    CRASHED,
    HUNG,
    PACKAGE,
    POWER,
    TRIAL,
    UNFIT,
    Record,
)
from agent.update.slots import Held, SlotError, Slots, disk_error, highest
from protocol.assignment import Item
from protocol.release import COMPONENTS
from protocol.update import Attempt, Class


class PowerCut(BaseException):
    """The power fails here."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A start: which version, why, and of a trial for which attempt."""

    version: str
    why: str
    attempt: Attempt | None


@dataclass
class Board:
    """What a power cut leaves; `package` is the version that was installed by hand.

    Each change counts as two instants, before and after it; at the instant `cut_at` the power
    fails, once. `writable` False: the disk refuses everything.
    """

    package: str = "0.1.0"
    journal: bytes | None = None
    slots: dict[tuple[str, str], Item | None] = field(default_factory=dict)  # None: half of it
    links: dict[str, str] = field(default_factory=dict)
    record: Record | None = None
    floors: dict[str, str] = field(default_factory=dict)
    kernel: int = 1
    cut_at: int = -1
    instants: int = 0
    writable: bool = True
    boots: list[Boot] = field(default_factory=list)

    def change(self, act: Callable[[], None]) -> None:
        """Make one change that is on the disk once it is made. Raises PowerCut, OSError."""
        self._instant()
        if not self.writable:
            raise OSError(errno.ENOSPC, "no space left on device")
        act()
        self._instant()

    def _instant(self) -> None:
        self.instants += 1
        if self.instants == self.cut_at:
            raise PowerCut

    def version(self, component: str, slot: str) -> str:
        """Return what lies in a slot."""
        held = self.slots.get((component, slot))
        if held is not None:
            return held.version
        return self.package if slot == PACKAGE else ""

    def launch(self, now_s: float) -> tuple[str, str]:
        """Do what the launcher does (`agent.update.launch`): slot, and why. PowerCut."""
        record, why = self.record, COMMITTED
        if record is not None and record.left:
            held = self.slots.get(("agent", record.slot))
            if held is None or held.sha256 != record.sha256:
                why = UNFIT
            else:
                used = replace(record, left=0, kernel=str(self.kernel), began_s=now_s)
                try:
                    self.change(lambda: setattr(self, "record", used))
                    why = TRIAL
                except OSError:
                    why = "unwritten"
        elif record is not None:
            late = now_s - record.began_s >= record.trial_s
            why = POWER if record.kernel != str(self.kernel) else HUNG if late else CRASHED
        slot = self.links.get("agent", PACKAGE)
        if why == TRIAL and record is not None:
            slot = record.slot
        elif slot != PACKAGE and self.slots.get(("agent", slot)) is None:
            slot = PACKAGE
        tried = Attempt(record.execution, record.attempt) if why == TRIAL and record else None
        self.boots.append(Boot(self.version("agent", slot), why, tried))
        return slot, why


class BoardPaper:
    """A journal on a board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self) -> bytes | None:
        """Return what the power cut has left."""
        return self._board.journal

    def write(self, content: bytes) -> None:
        """Replace it."""
        self._board.change(lambda: setattr(self._board, "journal", content))

    def put_aside(self) -> None:
        """Forget it."""
        self._board.journal = None


class BoardSlots(Slots):
    """Slots on a board, of the process that runs from `slot`."""

    def __init__(self, board: Board, slot: str) -> None:
        self._board = board
        self._slot = slot

    def folder(self, component: str, slot: str) -> Path:
        """Return a name: nothing lies there."""
        return Path(component, slot)

    def running(self) -> Held:
        """Return the slot of this process."""
        return self._held("agent", self._slot)

    def committed(self, component: str) -> Held:
        """Return the slot that the link names."""
        return self._held(component, self._board.links.get(component, PACKAGE))

    def _held(self, component: str, slot: str) -> Held:
        item = self._board.slots.get((component, slot))
        return Held(slot) if item is None else Held(slot, item.version, item.sha256, item.floor)

    def fill(self, slot: str, item: Item, archive: Path) -> None:
        """Put it there: for a while there is half of it."""
        del archive
        if self._board.slots.get((item.component, slot)) == item:
            return
        self.empty(item.component, slot)
        for part in (None, item):
            self._change(self._board.slots.__setitem__, (item.component, slot), part)

    def check(self, slot: str, item: Item) -> None:
        """Compare."""
        if self._board.slots.get((item.component, slot)) != item:
            raise SlotError(Class.STORAGE, "unfit_slot", f"slot {slot} is not {item.version}")

    def arm(self, record: Record) -> None:
        """Keep the record."""
        self._change(setattr, self._board, "record", record)

    def disarm(self) -> None:
        """Forget the record."""
        if self._board.record is not None:
            self._change(setattr, self._board, "record", None)

    def commit(self, component: str, slot: str) -> None:
        """Set the link."""
        if slot != PACKAGE and self._board.slots.get((component, slot)) is None:
            raise SlotError(Class.STORAGE, "unfit_slot", f"nothing whole lies in {slot}")
        if self._board.links.get(component, PACKAGE) != slot:
            self._change(self._board.links.__setitem__, component, slot)

    def empty(self, component: str, slot: str) -> None:
        """Forget what lies there."""
        if self._board.links.get(component) == slot:
            raise SlotError(Class.INTERNAL, "committed_slot", f"slot {slot} is committed")
        if (component, slot) in self._board.slots:
            self._change(self._board.slots.__delitem__, (component, slot))

    def floors(self) -> dict[str, str]:
        """Return the floors that are kept, or committed."""
        kept = self._board.floors
        return {
            name: highest(kept.get(name, ""), self.committed(name).floor) for name in COMPONENTS
        }

    def raise_floor(self, component: str, floor: str) -> None:
        """Keep the higher one."""
        now = highest(self._board.floors.get(component, ""), floor)
        if now != self._board.floors.get(component):
            self._change(self._board.floors.__setitem__, component, now)

    def mend(self, component: str) -> bool:
        """Nothing rots here."""
        return False

    def _change(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            self._board.change(lambda: act(*arguments))
        except OSError as error:
            raise disk_error(error) from error
