"""What a role may, and where: one table. Pure.

A grant's scope is everything, an organisation, one of its regions or one of its sites. A
permission is held at a place if some grant with a role that has it covers that place.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What somebody is to us."""

    ADMINISTRATOR = "administrator"
    NOC = "noc"
    TECHNICIAN = "technician"
    ANALYST = "analyst"
    STORE_MANAGER = "store manager"


class Permission(StrEnum):
    """What a route, a page or a command asks for."""

    READ_NUMBERS = "read numbers"
    ACT_ON_FEEDBACK = "act on feedback"
    READ_FLEET = "read fleet"
    CHANGE_REGISTER = "change register"
    PROVISION = "provision"
    ADMIT = "admit"
    MANAGE_PEOPLE = "manage people"
    MANAGE_KEYS = "manage keys"
    READ_AUDIT = "read audit"
    MANAGE_AUTHORITIES = "manage authorities"
    RUN_EXPERIMENTS = "run experiments"
    ASK_VISITORS = "ask visitors"
    SET_TARGETS = "set targets"
    CONFIGURE_DEVICES = "configure devices"
    COMMAND_DEVICES = "command devices"
    ROLL_OUT = "roll out"


_READ = frozenset({Permission.READ_NUMBERS, Permission.READ_FLEET})
MAY: dict[Role, frozenset[Permission]] = {
    Role.ADMINISTRATOR: frozenset(Permission),
    Role.NOC: _READ
    | {
        Permission.CHANGE_REGISTER,
        Permission.PROVISION,
        Permission.ADMIT,
        Permission.READ_AUDIT,
        Permission.CONFIGURE_DEVICES,
        Permission.COMMAND_DEVICES,
        Permission.ROLL_OUT,
    },
    Role.TECHNICIAN: frozenset(
        {Permission.READ_FLEET, Permission.PROVISION, Permission.COMMAND_DEVICES}
    ),
    Role.ANALYST: frozenset(
        {
            Permission.READ_NUMBERS,
            Permission.RUN_EXPERIMENTS,
            Permission.ASK_VISITORS,
            Permission.SET_TARGETS,
            Permission.ACT_ON_FEEDBACK,
        }
    ),
    Role.STORE_MANAGER: _READ | {Permission.ACT_ON_FEEDBACK},
}
"""`manage authorities` counts only with a grant over everything."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is to be done; None in front of what is not asked about."""

    organisation: int | None = None
    region: int | None = None
    site: int | None = None


EVERYWHERE = Place()


@dataclass(frozen=True, slots=True)
class Grant:
    """A role within a scope (row ids; all None: everything)."""

    role: Role
    organisation: int | None = None
    region: int | None = None
    site: int | None = None

    def covers(self, place: Place) -> bool:
        """True if the scope holds `place` whole."""
        if self.organisation is None:
            return True
        if self.organisation != place.organisation:
            return False
        if self.region is not None and self.region != place.region:
            return False
        return self.site is None or self.site == place.site


def may(grants: Iterable[Grant], permission: Permission, place: Place) -> bool:
    """True if some grant gives `permission` at the whole of `place`."""
    return any(permission in MAY[grant.role] and grant.covers(place) for grant in grants)


def scopes(grants: Iterable[Grant], permission: Permission) -> list[Place]:
    """Return the places at which `permission` is held, for lists and menus; EVERYWHERE if all."""
    found = [
        Place(grant.organisation, grant.region, grant.site)
        for grant in grants
        if permission in MAY[grant.role]
    ]
    return [EVERYWHERE] if EVERYWHERE in found else list(dict.fromkeys(found))
