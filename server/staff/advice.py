"""What the staff of a shop is told about a device, of all that is known of it. Pure.

One verdict, and steps that anybody can take without tools: no number, no name of a person, nothing
that another shop would mind. What staff cannot help with is none of theirs: it reads as working.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from server.health.judgement import Condition
from server.health.presence import State


class Verdict(StrEnum):
    """What is said first."""

    WORKING = "working"
    HELP = "help"  # it needs a hand
    WAITING = "waiting"  # somebody is at it, or it comes back by itself
    UNTOLD = "untold"  # nobody can tell just now
    EMPTY = "empty"  # no device is here


@dataclass(frozen=True, slots=True)
class Advice:
    """A verdict with the steps to take, in their order, as keys of the catalogues."""

    verdict: Verdict
    steps: tuple[str, ...] = ()


_POWER = ("power", "cable", "lights", "call")
_RESTART = ("restart", "call")
_STEPS: dict[Condition, tuple[str, ...]] = {
    Condition.STUCK_BUTTON: ("button", "restart", "call"),
    Condition.BLOCKED_VIEW: ("view", "wipe", "light"),
    Condition.FLATLINE: ("view", "cable", "restart", "call"),
    Condition.STUCK_COUNTER: ("moving", "restart", "call"),
    Condition.REBOOT_LOOP: ("plug", "call"),
    Condition.FLAPPING: ("cable", "call"),
    Condition.BACKLOG: ("cable", "call"),
    Condition.TEMPERATURE: ("air",),
}
"""What is open, the most helpful first, and what can be done about it on the spot."""


def advise(
    state: State | None,
    conditions: Collection[Condition] = (),
    *,
    admitted: bool = True,
    known: bool = True,
    seen_to: bool = False,
) -> Advice:
    """Return what to say of a device; `state` None: there is none.

    `conditions`: what is open of it, its spot and its site; `known`: it can be told at all;
    `seen_to`: maintenance, or a technician, is there.
    """
    if state is None:
        return Advice(Verdict.EMPTY)
    if not known:
        return Advice(Verdict.UNTOLD, ("wait",))
    if seen_to or not admitted or state in (State.PLANNED, State.NEVER_SEEN):
        return Advice(Verdict.WAITING, ("wait",))
    if Condition.SITE_OFFLINE in conditions:
        return Advice(Verdict.HELP, ("site_power", "router", "call"))
    if state is State.OFFLINE:
        return Advice(Verdict.HELP, _POWER)
    if state in (State.NO_DATA, State.NO_HEARTBEAT):
        return Advice(Verdict.HELP, _RESTART)
    for condition, steps in _STEPS.items():
        if condition in conditions:
            return Advice(Verdict.HELP, steps)
    return Advice(Verdict.WORKING)
