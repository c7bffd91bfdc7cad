"""Devices that come to fit a running rollout join its tail: by themselves, or as somebody asks.

A look reads and plans without any lock, by the exclusions of the plan itself; who fits is then
taken in under the rollout's lock, where it is asked again whether anybody may join and how many, so
two that look at once take nobody twice. A rollout whose plan is not known (as that of a way back)
is joined by nobody.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import asyncpg
import msgspec
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import DATABASE_SILENT, transaction
from server.db.turns import repeat
from server.errors import NotFoundError, RefusedError
from server.firmware import acts, planning, starting
from server.firmware.guards import CLOCKS_DIFFER
from server.firmware.joiners import Outlook, admits, no_way_back, room, rules
from server.firmware.plan import Device, Plan
from server.firmware.planning import Asked
from server.firmware.policy import Policy, WaveRule, read_policy
from server.firmware.rows import hold
from server.fleet.checks import FieldError

EVERY_S = 30.0
AGAIN = timedelta(minutes=5)
ROLLOUTS = 20
A_LOOK = 500
"""At most so many join at once; the others at the next look."""
MOST_NAMED = 500
"""Devices that are asked for by name at once."""

PART = "it takes part"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Left:
    """A device that does not join, and why."""

    device: str
    why: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Who has joined, and who has not."""

    devices: tuple[str, ...]
    left_out: tuple[Left, ...]


class _OneWay(msgspec.Struct):
    component: str
    version: str


class _Told(msgspec.Struct):
    filter: str
    one_way: list[_OneWay]
    segment: str | None = None
    back: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What a rollout that was planned brings to whom, as it was asked for."""

    id: int
    organisation: int
    approver: str
    asked: Asked
    one_way: frozenset[tuple[str, str]]

    def by(self, waves: Sequence[WaveRule]) -> Asked:
        """Return what plans whom these waves take; who joins is no control."""
        made: Policy = msgspec.structs.replace(self.asked.policy, waves=tuple(waves), controls=0)
        return replace(self.asked, policy=made)


async def target(connection: asyncpg.Connection, rollout: int) -> Target | None:
    """Return what a rollout (its row) brings; None: no plan of a bundle was kept."""
    row = await connection.fetchrow(_TARGET, rollout)
    if row is None or row["told"] is None or row["bundle"] is None:
        return None
    told = msgspec.json.decode(row["told"], type=_Told)
    asked = Asked(
        *(row["bundle"], told.filter, told.segment, read_policy(row["policy"])),
        *(row["seed"] or "", told.back),
    )
    one_way = frozenset((each.component, each.version) for each in told.one_way)
    return Target(rollout, row["organisation_id"], row["approver"], asked, one_way)


# -- by themselves ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Joiners:
    """`run` until cancelled; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock

    async def run(self) -> None:
        """Look for ever; a database that is away is tried again."""
        await repeat(self.turn, rest_s=EVERY_S, away="nobody looked for who joins")

    async def turn(self) -> int:
        """Look at each rollout that is due, once; return how many devices joined."""
        now, joined = at(self.clock.now_ms()), 0
        rows = await self.pool.fetch(_DUE, now - AGAIN, ROLLOUTS, now + CLOCKS_DIFFER)
        for row in rows:
            await self.pool.execute(_LOOKED, row["id"], now)  # who fails comes after all others
            try:
                joined += await self._look(row["id"], now=now)
            except DATABASE_SILENT:
                raise
            except RefusedError as error:  # withdrawn, or over by now
                log.info("nobody joins a rollout", rollout=row["id"], why=error.code)
            except Exception:  # one that cannot be looked at keeps no other from it
                metrics.TURNS_BROKEN.inc()
                log.exception("who joins a rollout cannot be told", rollout=row["id"])
        return joined

    async def _look(self, rollout: int, *, now: datetime) -> int:
        async with transaction(self.pool, "look for who joins a rollout") as connection:
            fit = await fitting(connection, rollout, now=now)
        if not fit:
            return 0
        async with transaction(self.pool, "let devices join a rollout") as connection:
            return await admit(connection, rollout, fit, now=now)


async def fitting(connection: asyncpg.Connection, rollout: int, *, now: datetime) -> list[int]:
    """Return the devices (rows) that would join a rollout by themselves, in the order of the lot.

    Raises RefusedError.
    """
    known = await target(connection, rollout)
    if known is None or not (taking := rules(known.asked.policy)):
        return []
    found = await planning.found(connection, known.organisation, known.asked, now=now)
    there = {row["device_id"] for row in await connection.fetch(_THERE, rollout)}
    rows = [row for row in found if row not in there]
    if not rows:
        return []
    asked = known.by(taking)
    made, bundle = await planning.again(connection, known.organisation, asked, rows, now=now)
    return [
        device.id
        for device in _taken(made)
        if not no_way_back(device, bundle, known.one_way)
    ]  # fmt: skip


async def admit(
    connection: asyncpg.Connection, rollout: int, fit: Sequence[int], *, now: datetime
) -> int:
    """Let those join for whom there is room; return how many did. They fitted a moment ago."""
    held = await hold(connection, rollout, now=now)
    if held is None or admits(held.rollout) or not held.rollout.policy.joiners.admit:
        return 0
    chosen = fit[: min(A_LOOK, room(held.rollout, held.facts.approver))]
    members = [starting.Member(device, 0) for device in chosen]
    joined = await starting.join(held, members, reason="they have come to fit it")
    await held.write()
    return joined


def _taken(made: Plan) -> list[Device]:
    return [device for wave in made.waves for device in wave.devices]


# -- as somebody asks ------------------------------------------------------------------------------


async def ask(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    names: Iterable[str],
    *,
    actor: str,
    now: datetime,
) -> Joined:
    """Let devices join what runs, whatever its filter says; the plan's exclusions hold.

    Asked for again, who has joined takes part. Raises NotFoundError, FieldError, RefusedError: also
    where none of them joins.
    """
    wanted = sorted(set(names))
    if not 1 <= len(wanted) <= MOST_NAMED:
        raise FieldError("devices", f"expected 1 to {MOST_NAMED} devices")
    number = await connection.fetchval(
        "select id from rollouts where organisation_id = $1 and ref = $2", organisation, ref
    )
    known = None if number is None else await target(connection, number)
    if number is None:
        raise NotFoundError(f"no rollout {ref[:40]!r}")
    if known is None:
        raise RefusedError("bad_transition", "nobody joins: it brings no bundle, or has no plan")
    rows = await _rows(connection, organisation, wanted)
    left = await _left_out(connection, known, rows, now=now)
    fit = [row for name, row in rows.items() if name not in left]
    if not fit and set(left.values()) != {PART}:
        why = "; ".join(sorted({f"{name}: {text}" for name, text in left.items()})[:5])
        raise RefusedError("no_devices", f"nobody joins: {why}")
    if fit:
        await acts.join(connection, organisation, ref, fit, actor=actor, now=now)
    there = {row["device_id"]: row for row in await connection.fetch(_NOW, number, fit)}
    for name, row in rows.items():
        if name not in left and (text := there[row]["excluded"]):
            left[name] = text
    joined = tuple(name for name in wanted if name not in left)
    return Joined(joined, tuple(Left(name, left[name]) for name in sorted(left)))


async def _rows(
    connection: asyncpg.Connection, organisation: int, names: Sequence[str]
) -> dict[str, int]:
    rows = await connection.fetch(
        "select id, device from devices where organisation_id = $1 and device = any($2::text[])",
        *(organisation, names),
    )
    if missing := set(names) - {row["device"] for row in rows}:
        raise FieldError("devices", f"no device {min(missing)[:40]!r}")
    return {row["device"]: row["id"] for row in rows}


async def _left_out(
    connection: asyncpg.Connection,
    known: Target,
    rows: dict[str, int],
    *,
    now: datetime,
    waves: Sequence[WaveRule] = (WaveRule(),),
) -> dict[str, str]:
    """Return which devices do not fit, and why."""
    there = await connection.fetch(_NOW, known.id, list(rows.values()))
    part = {row["device_id"] for row in there if not row["excluded"]}
    left = {name: PART for name, row in rows.items() if row in part}
    fresh = [row for row in rows.values() if row not in part]
    if not fresh:
        return left
    made, bundle = await planning.again(
        connection, known.organisation, known.by(waves), fresh, now=now
    )
    left |= {each.device.name: each.text for each in made.excluded}
    for device in _taken(made):
        if text := no_way_back(device, bundle, known.one_way):
            left[device.name] = text
    return left


# -- what is said of it ----------------------------------------------------------------------------


async def outlook(
    connection: asyncpg.Connection, rollout: int, device: int, *, now: datetime
) -> Outlook | None:
    """Return whether a device (its row) that takes no part joins by itself; None: not known."""
    known = await target(connection, rollout)
    if known is None:
        return None
    policy = known.asked.policy
    if not policy.joiners.admit:
        return Outlook(False, "its policy lets nobody join by itself")
    if not (taking := rules(policy)):
        return Outlook(False, "it wants a count or a share of devices, and has them")
    if device not in await planning.found(connection, known.organisation, known.asked, now=now):
        return Outlook(False, "its filter does not find this device")
    try:
        left = await _left_out(connection, known, {"": device}, now=now, waves=taking)
    except RefusedError as error:
        return Outlook(False, str(error))
    return Outlook(not left, "".join(left.values()))


_TARGET = """
    select r.organisation_id, r.approver, r.policy, r.plan -> 'told' as told,
           r.plan ->> 'seed' as seed, b.ref as bundle
    from rollouts r left join bundles b on b.id = r.bundle_id
    where r.id = $1 and r.payload = 'bundle' and r.reverses is null
"""
_THERE = "select device_id from executions where rollout_id = $1 and excluded = ''"
_NOW = """
    select device_id, state, excluded from executions
    where rollout_id = $1 and device_id = any($2::int[])
"""
_DUE = """
    select id from rollouts
    where state = 'running' and payload = 'bundle' and reverses is null and plan ? 'told'
      and coalesce((policy #>> '{joiners,admit}')::bool, true)
      and (joiners_at is null or joiners_at <= $1 or joiners_at > $3)
    order by joiners_at nulls first, id limit $2
"""
_LOOKED = "update rollouts set joiners_at = $2 where id = $1"
