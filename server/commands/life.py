"""A command's life at one device, what it risks, and how many go on at once. Pure.

    queued -> sent -> running -> done | failed
    queued, sent, running -> expired        its time is over, or the device says nothing any more
    queued, sent -> cancelled

Decided here:
- What a device says that it did wins over what we supposed: after `expired` and `cancelled` may
  come `done` or `failed`. Nothing else follows an end, and no end follows `done` or `failed`.
- What is sent is offered again until the device says that it runs; it does it once all the same,
  since it writes a command down before it begins. What runs is offered no more.
- A kind that stops counting or asking needs a reason where the store is open; without one it waits
  until the store is closed, and is not even taken while it is open. While a freeze is on there it
  is neither taken nor offered, unless it was asked for to override that.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from protocol import state as wire


class State(StrEnum):
    """Where a command stands."""

    QUEUED = "queued"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What happens to it: we offer, cancel, or wait in vain; the device says the rest."""

    OFFERED = "offered"
    RUNNING = wire.RUNNING
    DONE = wire.DONE
    FAILED = wire.FAILED
    OVERDUE = "overdue"
    CANCELLED = "cancelled"


class Risk(StrEnum):
    """What a kind of command may do to a store."""

    HARMLESS = "harmless"
    CAREFUL = "careful"  # it takes the device's time, and tells us much of it
    DISRUPTIVE = "disruptive"  # nothing is counted or asked for a while


OPEN = frozenset({State.QUEUED, State.SENT, State.RUNNING})
_SAID = {Event.DONE: State.DONE, Event.FAILED: State.FAILED}
RUN = timedelta(hours=1)
"""How long a command may run before it counts as lost."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of command: its risk, how long it is offered, whether it brings a file."""

    name: str
    risk: Risk
    ttl: timedelta
    brings: str = ""  # the file's name ends so


KINDS = {
    each.name: each
    for each in (
        Kind(wire.REBOOT, Risk.DISRUPTIVE, timedelta(hours=12)),
        Kind(wire.IDENTIFY, Risk.HARMLESS, timedelta(minutes=15)),
        Kind(wire.SELF_TEST, Risk.HARMLESS, timedelta(days=1)),
        Kind(wire.DIAGNOSTICS, Risk.CAREFUL, timedelta(days=1), "json.gz"),
        Kind(wire.LOG_TAIL, Risk.HARMLESS, timedelta(days=1), "log.gz"),
    )
}
TTL = (timedelta(minutes=1), timedelta(days=7))
AT_ONCE = {
    Risk.HARMLESS: (10, 500),
    Risk.CAREFUL: (2, 50),
    Risk.DISRUPTIVE: (1, 50),
}
"""How many of a risk may be with devices at once: of a site, of an organisation."""


def after(state: State, event: Event) -> State | None:
    """Return where a command stands after an event; None: the event changes nothing."""
    if event in _SAID:
        return None if state in _SAID.values() else _SAID[event]
    if state not in OPEN:
        return None
    match event:
        case Event.OFFERED:
            return State.SENT if state is State.QUEUED else None
        case Event.RUNNING:
            return None if state is State.RUNNING else State.RUNNING
        case Event.OVERDUE:
            return State.EXPIRED
        case Event.CANCELLED:
            return None if state is State.RUNNING else State.CANCELLED
        case _:
            raise AssertionError(event)


@dataclass(frozen=True, slots=True)
class Gate:
    """What decides whether a queued command may be offered now."""

    risk: Risk
    open_now: bool  # is the store where the device stands
    reason: bool  # was one given
    at_site: int  # others of this risk that are with devices
    at_organisation: int
    frozen: bool = False  # is a freeze on there that it does not override

    @property
    def holds(self) -> str:
        """Why it waits; empty: it may go."""
        site, organisation = AT_ONCE[self.risk]
        if self.risk is Risk.DISRUPTIVE and self.frozen:
            return "frozen"
        if self.risk is Risk.DISRUPTIVE and self.open_now and not self.reason:
            return "store_open"
        if self.at_site >= site:
            return "site_busy"
        return "organisation_busy" if self.at_organisation >= organisation else ""
