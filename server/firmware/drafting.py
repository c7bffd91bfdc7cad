"""A plan that becomes a rollout: what is kept of it, and what is told of it before and after.

What a rollout keeps (`rollouts.plan`): `waves` and `excluded`, whom it is started with; `seed` and
`controls`, which the counts guard reads; `why`, the reason of each that is excluded; `told`, the
rest. What is told of a dry run and of a plan that was kept is made of the same content, so it is
the same: what was approved is what was shown. The seed is told nobody.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg
import msgspec

from server.firmware import acts, plan, planning, reads
from server.firmware.nights import instant
from server.firmware.planning import Asked, DryRun
from server.firmware.policy import write_policy
from server.firmware.reads import Loaded

MOST_NAMED = 1_000
"""Of those who are left out, how many are named at once; how many there are is always told."""


@dataclass(frozen=True, slots=True)
class WaveTold:
    """A wave, and when it opens and is done at the soonest; None: beyond all known windows."""

    number: int
    devices: int
    bytes: int
    opens_at: datetime | None
    done_at: datetime | None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A device that is left out, by which rule, and why in a sentence."""

    device: str
    why: str
    text: str


@dataclass(frozen=True, slots=True)
class Leg:
    """A release that comes first, for devices that are too old, in a rollout of its own."""

    component: str
    version: str
    devices: int


@dataclass(frozen=True, slots=True)
class OneWay:
    """A release that raises the floor above `versions`, which so many devices run now."""

    component: str
    version: str
    floor: str
    devices: int
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A rollout that has devices in hand: so many are left out here, so many taken from it."""

    rollout: str
    left_out: int
    taken: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A rollout that has not begun and wants so many of these devices, too: the first has them."""

    rollout: str
    devices: int


@dataclass(frozen=True, slots=True)
class Detects:
    """The least loss of counts that is found within `looks` days, one look a day, in 80 and in 90 %
    of rollouts such as this; shares."""

    loss_80: float
    loss_90: float
    updated: int
    control: int
    looks: int


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a plan. `excluded` names the first; `detects_nothing`: why the counts guard
    would find no loss at all, if so; `second_person`: why its author may not approve it."""

    filter: str
    devices: int
    sites: int
    bytes: int
    controls: int
    commitment: str
    waves: tuple[WaveTold, ...]
    reasons: Mapping[str, int]
    excluded: tuple[LeftOut, ...]
    legs: tuple[Leg, ...]
    one_way: tuple[OneWay, ...]
    conflicts: tuple[Conflict, ...]
    pending: tuple[Pending, ...]
    detects: Detects | None
    detects_nothing: str
    second_person: tuple[str, ...]

    @property
    def done_at(self) -> datetime | None:
        """When all of it would be done at the soonest."""
        return self.waves[-1].done_at if self.waves else None


@dataclass(frozen=True, slots=True)
class Drafted:
    """A rollout that was drafted and planned."""

    ref: str
    dry: DryRun


async def draft(
    connection: asyncpg.Connection,
    organisation: int,
    name: str,
    asked: Asked,
    *,
    actor: str,
    now: datetime,
) -> Drafted:
    """Plan a rollout of a bundle, of settings or of a questionnaire, and keep the plan.

    Raises NotFoundError, FilterError, RefusedError; of settings FieldError, ConflictError, too.
    Who would reach nobody is refused (EmptyPlanError), with the reasons.
    """
    dry = await planning.dry_run(connection, organisation, asked, now=now)
    plan.demand_devices(dry.plan)
    wanted = acts.New(name, write_policy(dry.policy), bundle=asked.bundle)
    if dry.change is not None:
        content = dry.change.content()
        wanted = acts.New(name, write_policy(dry.policy), dry.change.payload, None, content)
    ref = await acts.draft(connection, organisation, wanted, actor=actor, now=now)
    await acts.plan(connection, organisation, ref, content_of(dry), actor=actor, now=now)
    return Drafted(ref, dry)


def content_of(dry: DryRun) -> dict[str, object]:
    """Return what a rollout keeps of its plan."""
    made, kept = dry.plan, dry.kept()
    return {
        "seed": kept.pop("seed"),
        "controls": kept.pop("controls"),
        "waves": [[device.id for device in wave.devices] for wave in made.waves],
        "excluded": [[each.device.id, each.text] for each in made.excluded],
        "why": [each.why.value for each in made.excluded],
        "told": kept,
    }


def told(dry: DryRun) -> Told:
    """Return what is told of a dry run."""
    names = {each.device.id: each.device.name for each in dry.plan.excluded}
    return _told(content_of(dry), names)


async def told_of(connection: asyncpg.Connection, known: Loaded) -> Told | None:
    """Return what is told of a rollout's plan; None where none was made, as for a way back."""
    content = await reads.plan(connection, known.line.id)
    if "told" not in content:
        return None
    kept = msgspec.convert(content, type=_Kept)
    rows = await connection.fetch(
        "select id, device from devices where id = any($1::int[])",
        [device for device, _ in kept.excluded[:MOST_NAMED]],
    )
    return _told(content, {row["id"]: row["device"] for row in rows})


class _Wave(msgspec.Struct):
    number: int
    devices: int
    bytes: int
    opens: int | None
    done: int | None


class _Text(msgspec.Struct):
    filter: str
    devices: int
    sites: int
    bytes: int
    commitment: str
    waves: list[_Wave]
    excluded: dict[str, int]
    legs: list[Leg]
    one_way: list[OneWay]
    conflicts: dict[str, tuple[int, int]]
    pending: dict[str, int]
    detects: Detects | str
    second_person: tuple[str, ...]


class _Kept(msgspec.Struct):
    controls: list[int]
    excluded: list[tuple[int, str]]
    why: list[str]
    told: _Text


def _told(content: Mapping[str, object], names: Mapping[int, str]) -> Told:
    kept = msgspec.convert(json.loads(json.dumps(content)), type=_Kept)
    said = kept.told
    left_out = zip(kept.excluded[:MOST_NAMED], kept.why, strict=False)
    return Told(
        filter=said.filter,
        devices=said.devices,
        sites=said.sites,
        bytes=said.bytes,
        controls=len(kept.controls),
        commitment=said.commitment,
        waves=tuple(
            WaveTold(w.number, w.devices, w.bytes, _instant(w.opens), _instant(w.done))
            for w in said.waves
        ),
        reasons=said.excluded,
        excluded=tuple(
            LeftOut(names[device], why, text) for (device, text), why in left_out if device in names
        ),
        legs=tuple(said.legs),
        one_way=tuple(said.one_way),
        conflicts=tuple(Conflict(ref, *pair) for ref, pair in said.conflicts.items()),
        pending=tuple(Pending(ref, number) for ref, number in said.pending.items()),
        detects=said.detects if isinstance(said.detects, Detects) else None,
        detects_nothing="" if isinstance(said.detects, Detects) else said.detects,
        second_person=said.second_person,
    )


def _instant(at_s: int | None) -> datetime | None:
    return None if at_s is None else instant(at_s)
