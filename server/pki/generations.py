"""Which roots and authorities there are, and what each is for just now. Pure.

    trusted -> signing -> leaving -> gone

A root is in every bundle from `trusted` until `gone`, an authority among what the broker trusts.
One of each kind signs. The next root is made together with the first, so that devices trust it
years before anything stands below it.

A change is begun (what comes next is trusted), switched (it signs, the one before is leaving), and
finished (what was leaving is gone); a new one only begins when the one before is finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """What it signs: authorities, devices, or our own services."""

    ROOT = "root"
    DEVICE = "device"
    SERVICE = "service"


class State(StrEnum):
    """What it is for."""

    TRUSTED = "trusted"
    SIGNING = "signing"
    LEAVING = "leaving"
    GONE = "gone"


class RolloverError(ValueError):
    """A step that is not the next one."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A root or an authority; `root` is the name of the root above it, its own for a root."""

    kind: Kind
    number: int
    state: State
    root: str

    @property
    def name(self) -> str:
        """Such as `device-2`."""
        return f"{self.kind}-{self.number}"


Generations = tuple[Generation, ...]


def first() -> Generations:
    """Return what a new installation has: two roots, and authorities below the first."""
    return (
        Generation(Kind.ROOT, 1, State.SIGNING, "root-1"),
        Generation(Kind.ROOT, 2, State.TRUSTED, "root-2"),
        Generation(Kind.DEVICE, 1, State.SIGNING, "root-1"),
        Generation(Kind.SERVICE, 1, State.SIGNING, "root-1"),
    )


def of(generations: Sequence[Generation], kind: Kind, *states: State) -> Generations:
    """Return those of a kind in one of the states; without states, all that are not gone."""
    wanted = states or (State.TRUSTED, State.SIGNING, State.LEAVING)
    return tuple(g for g in generations if g.kind is kind and g.state in wanted)


def signing(generations: Sequence[Generation], kind: Kind) -> Generation:
    """Return the one that signs."""
    (found,) = of(generations, kind, State.SIGNING)
    return found


def next_root(generations: Sequence[Generation]) -> Generation:
    """Return the root that is to sign after the present one: the oldest that waits."""
    return min(of(generations, Kind.ROOT, State.TRUSTED), key=lambda root: root.number)


def staged(generations: Sequence[Generation]) -> Generations:
    """Return the authorities that the next switch lets sign."""
    return of(generations, Kind.DEVICE, State.TRUSTED) + of(
        generations, Kind.SERVICE, State.TRUSTED
    )


def moves_root(generations: Sequence[Generation]) -> bool:
    """Whether the next switch moves the fleet to the next root."""
    return any(g.root != signing(generations, Kind.ROOT).name for g in staged(generations))


def with_authority(generations: Generations, kind: Kind) -> Generations:
    """Begin the change of one authority below the present root."""
    if kind is Kind.ROOT:
        raise RolloverError("a root comes with a rollover")
    _demand_rest(generations)
    return (*generations, _following(generations, kind, signing(generations, Kind.ROOT).name))


def with_rollover(generations: Generations) -> Generations:
    """Begin the move to the next root: authorities below it, and the root after it."""
    _demand_rest(generations)
    root = next_root(generations).name
    after = _following(generations, Kind.ROOT, "")
    return (
        *generations,
        replace(after, root=after.name),
        _following(generations, Kind.DEVICE, root),
        _following(generations, Kind.SERVICE, root),
    )


def switched(generations: Generations) -> Generations:
    """Let what was begun sign, and what signed before leave."""
    begun = staged(generations)
    if not begun:
        raise RolloverError("nothing was begun: `rollover start` or `issue-intermediate` first")
    starting = {g.name for g in begun}
    if moves_root(generations):
        starting.add(begun[0].root)
    kinds = {g.kind for g in generations if g.name in starting}
    leaving = {signing(generations, kind).name for kind in kinds}
    return tuple(
        replace(g, state=State.SIGNING)
        if g.name in starting
        else replace(g, state=State.LEAVING)
        if g.name in leaving
        else g
        for g in generations
    )


def finished(generations: Generations) -> Generations:
    """Let what is leaving be gone."""
    if not any(g.state is State.LEAVING for g in generations):
        raise RolloverError("nothing is leaving")
    return tuple(
        replace(g, state=State.GONE) if g.state is State.LEAVING else g for g in generations
    )


def _demand_rest(generations: Generations) -> None:
    if staged(generations):
        raise RolloverError("a change was begun and not switched yet")
    if leaving := [g.name for g in generations if g.state is State.LEAVING]:
        raise RolloverError(f"{', '.join(leaving)} is still leaving: finish that first")


def _following(generations: Generations, kind: Kind, root: str) -> Generation:
    number = max(g.number for g in generations if g.kind is kind) + 1
    return Generation(kind, number, State.TRUSTED, root)
