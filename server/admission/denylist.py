"""The broker's deny-list as its dynamic security plugin speaks of it: commands and answers. Pure.

A device on the list is a client of the plugin that is disabled (this ends its session) and holds
the revoked role alone (this makes it inert if it connects again, which 2.0 does not prevent where
the name comes from a certificate). All other devices are unknown to the plugin: for them the
access list decides.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

REVOKED_ROLE: Final = "revoked"
SERVICE_PREFIX: Final = "svc-"
REVOKED_RULES: Final = tuple(
    {"acltype": kind, "topic": "#", "priority": 100, "allow": False}
    for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
)
NOT_FOUND = "not found"  # ends the plugin's own words: client, role

Command = dict[str, object]
Json = Mapping[str, object]


def deny(names: Iterable[str]) -> list[Command]:
    """Return what puts names on the list, whatever the plugin knew of them, and ends sessions.

    In one message nothing comes between: a name that is taken off is on again at once.
    """
    role = {"roles": [{"rolename": REVOKED_ROLE}]}
    commands: list[Command] = []
    for name in names:
        commands += [
            {"command": "deleteClient", "username": name},
            {"command": "createClient", "username": name, **role},
            {"command": "disableClient", "username": name},
            {"command": "getClient", "username": name},
        ]
    return commands


def admit(names: Iterable[str]) -> list[Command]:
    """Return what takes names off the list."""
    commands: list[Command] = []
    for name in names:
        commands += [
            {"command": "deleteClient", "username": name},
            {"command": "getClient", "username": name},
        ]
    return commands


def look(names: Iterable[str]) -> list[Command]:
    """Return what asks after names."""
    return [{"command": "getClient", "username": name} for name in names]


def listing(offset: int, count: int) -> Command:
    """Return what asks for a page of all clients."""
    return {"command": "listClients", "verbose": True, "offset": offset, "count": count}


def role(command: str) -> Command:
    """Return `getRole`, `createRole` or `modifyRole` for the revoked role."""
    rules = {} if command == "getRole" else {"acls": list(REVOKED_RULES)}
    return {"command": command, "rolename": REVOKED_ROLE, **rules}


def clients(responses: Sequence[Json]) -> dict[str, bool]:
    """Return whom answers to `getClient` know, and whether each stands as it should.

    ValueError for any other answer than that someone is not known.
    """
    found: dict[str, bool] = {}
    for response in responses:
        if response.get("command") != "getClient":
            continue
        error = response.get("error")
        if error is None:
            name, whole = _entry(_mapping(_mapping(response.get("data")).get("client")))
            found[name] = whole
        elif not str(error).endswith(NOT_FOUND):
            raise ValueError(f"getClient: {error}")
    return found


def page(response: Json) -> tuple[dict[str, bool], int]:
    """Return a page of devices and whether each stands as it should; how many clients there are.

    Services are left out. ValueError if it is no answer to `listing`.
    """
    if "error" in response:
        raise ValueError(f"listClients: {response['error']}")
    data = _mapping(response.get("data"))
    rows = data.get("clients")
    total = data.get("totalCount")
    if not isinstance(rows, list) or not isinstance(total, int):
        raise ValueError(f"listClients: {data}")
    found = dict(_entry(_mapping(row)) for row in rows)
    return {n: w for n, w in found.items() if not n.startswith(SERVICE_PREFIX)}, total


def role_stands(response: Json) -> bool | None:
    """Return whether the revoked role is what it should be, None if there is none."""
    if "error" in response:
        return None
    rules = _mapping(_mapping(response.get("data")).get("role")).get("acls")
    return isinstance(rules, list) and _sorted(rules) == _sorted(REVOKED_RULES)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the broker's list is not what it should be."""

    missing: tuple[str, ...]
    weak: tuple[str, ...]  # on it, but not disabled, or with other roles
    extra: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.weak or self.extra)


def compare(found: Mapping[str, bool], wanted: Collection[str]) -> Difference:
    """Return how the list that was `found` differs from the one `wanted`."""
    return Difference(
        tuple(sorted(set(wanted) - found.keys())),
        tuple(sorted(name for name in wanted if found.get(name) is False)),
        tuple(sorted(found.keys() - set(wanted))),
    )


def _entry(client: Json) -> tuple[str, bool]:
    roles = client.get("roles")
    names = [_mapping(role).get("rolename") for role in roles] if isinstance(roles, list) else []
    whole = client.get("disabled") is True and names == [REVOKED_ROLE] and not client.get("groups")
    return str(client.get("username")), whole


def _mapping(value: object) -> Json:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r}")
    return value


def _sorted(rules: Iterable[object]) -> list[str]:
    return sorted(str(sorted(_mapping(rule).items())) for rule in rules)
