"""A device's life: its states, which follows which, and what each edge does. Pure.

manufactured -> claimed -> provisioned -> installed -> in service, forwards only, steps may be
left out. From any of these: suspended or quarantined, and from there back to where it was. From
anywhere: returned (it may be manufactured again, for another owner) and retired, which is final.
The database holds the list of states and computes `admitted` from it.
"""

from dataclasses import dataclass
from enum import StrEnum

from server.errors import RefusedError


class State(StrEnum):
    """Where a device is in its life."""

    MANUFACTURED = "manufactured"
    CLAIMED = "claimed"
    PROVISIONED = "provisioned"
    INSTALLED = "installed"
    IN_SERVICE = "in service"
    SUSPENDED = "suspended"
    QUARANTINED = "quarantined"
    RETURNED = "returned"
    RETIRED = "retired"


WORKING = (
    State.MANUFACTURED,
    State.CLAIMED,
    State.PROVISIONED,
    State.INSTALLED,
    State.IN_SERVICE,
)
HELD = frozenset({State.SUSPENDED, State.QUARANTINED})
ENDED = frozenset({State.RETURNED, State.RETIRED})


class Certificate(StrEnum):
    """What happens to a device's certificates on an edge."""

    KEEP = "keep"
    DENY = "deny"  # on the deny-list, not revoked: it can come back
    ADMIT = "admit"
    REVOKE = "revoke"  # for good


@dataclass(frozen=True, slots=True)
class Effects:
    """What an edge does to certificates and data."""

    certificate: Certificate
    assignment_ends: bool  # whether its spot is free from now on


def effects(before: State, after: State, *, returns_to: State | None = None) -> Effects:
    """Return what the edge does. RefusedError (`bad_transition`) if there is none.

    `returns_to`: the state from which a held device was taken; the only one it goes back to.
    """
    if not _allowed(before, after, returns_to=returns_to):
        raise RefusedError("bad_transition", f"a device that is {before} cannot become {after}")
    if after in ENDED:
        return Effects(Certificate.REVOKE, assignment_ends=True)
    if after in HELD:
        return Effects(Certificate.DENY, assignment_ends=False)
    admit = Certificate.ADMIT if before in HELD else Certificate.KEEP
    return Effects(admit, assignment_ends=False)


def _allowed(before: State, after: State, *, returns_to: State | None) -> bool:
    if before == after or before is State.RETIRED:
        return False
    if before is State.RETURNED:
        return after in (State.MANUFACTURED, State.RETIRED)
    if after in ENDED:
        return True
    if before in HELD:
        return after in HELD or after is returns_to
    if after in HELD:
        return before is not State.MANUFACTURED
    return WORKING.index(after) > WORKING.index(before)
