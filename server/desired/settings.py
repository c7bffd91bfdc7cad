"""Layers of settings in the database: read, edited, told to devices, compared with their word.

The tables are the truth. A device is told all of it whenever it asks (`told`), and answers with
what it has (`noted`); the bell only says that there is something else. So nothing here is queued.

Invariants:
- Who edits a layer says which version of it he has seen, and comes second at most once.
- A rollout changes a layer device by device (`server.firmware.steering`): what it lays over a
  device's layers lies in `executions.settings`, and counts there as if the layer said it. While one
  is under way nobody else changes the same key of the same layer.
- `device_settings.version` rises with each telling that differs from the one before it; a report
  that names it says what the device made of exactly that.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import asyncpg

from protocol.settings import SettingError, Value
from protocol.state import Outcome, Report
from server.audit.log import record
from server.desired.layers import (
    Edit,
    Entry,
    Layer,
    Merged,
    Overlay,
    Scope,
    State,
    checked_edit,
    merged,
    overlaid,
    states,
    wanted,
)
from server.errors import ConflictError, NotFoundError
from server.firmware import freezes
from server.fleet import checks
from server.fleet.checks import ChangedError, FieldError
from server.fleet.register import lock_organisation

CHANGED = "desired_changed"
"""The channel that carries a device's id when what it is to be, or to do, has changed."""

_LAYERS_LOCK = 0x6465_7369  # "desi"
CONFIRM_S = 300
"""How long a device tries what may cut it off, before it goes back."""


@dataclass(frozen=True, slots=True)
class Place:
    """Whose layer: its scope, its public name (empty: the organisation), and its row."""

    scope: Scope
    of: str
    site: int | None = None
    device: int | None = None
    kind: str | None = None  # of a device


@dataclass(frozen=True, slots=True)
class Held:
    """A layer as it is stored; version 0: nobody has written it yet."""

    place: Place
    version: int
    entries: Mapping[str, Entry]
    changed_at: datetime | None

    @property
    def ref(self) -> str:
        """How it is named to people, and in the audit."""
        return f"{self.place.scope.value} {self.place.of}".strip()


@dataclass(frozen=True, slots=True)
class Device:
    """A device with what decides its layers."""

    id: int
    device: str
    kind: str
    model: str
    site: int | None
    site_ref: str | None
    region: int | None
    organisation: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """A device's settings, why they are so, and what became of them."""

    device: Device
    version: int
    reported_version: int | None
    reported_at: datetime | None
    agent: str
    states: Mapping[str, State]


@dataclass(frozen=True, slots=True)
class Preview:
    """Whom an edit would reach, and who would get another value; devices by site, '' nowhere."""

    devices: int
    changed: int
    sites: Mapping[str, int]


_DEVICES = """
select d.id, d.device, d.kind, d.model, s.id, s.ref, s.region_id, d.organisation_id
from devices d
left join assignments a on a.device_id = d.id and a.valid @> $1::timestamptz
left join spots p on p.id = a.spot_id left join sites s on s.id = p.site_id
"""
_LAYERS = """
select l.scope, l.model, l.site_id, l.device_id, coalesce(s.ref, d.device, l.model), l.entries
from settings_layers l left join sites s on s.id = l.site_id
left join devices d on d.id = l.device_id where l.organisation_id = $1 and l.entries <> '{}'
"""

_OVERLAYS = """
select e.device_id, e.settings from executions e where e.organisation_id = $1
and e.settings is not null and ($2::int is null or e.device_id = $2) order by e.id
"""
_CHANGING = """
select o.ref, key from rollouts o cross join unnest($5::text[]) key
where o.organisation_id = $1 and o.payload = 'settings' and o.reverses is null
and o.state in ('running', 'paused', 'halted', 'reverting', 'cancelling')
and o.content ->> 'scope' = $2 and o.content -> 'values' ? key
and case when $2 = 'device' then exists (
    select from executions e where e.rollout_id = o.id and e.device_id = $4
    and e.settings is not null) else o.content ->> 'of' = $3 end
order by o.id, key limit 1
"""
_LAYER = """
select version, entries, changed_at from settings_layers where organisation_id = $1
and scope = $2 and model = $3 and site_id is not distinct from $4
and device_id is not distinct from $5
"""
_LAYER_LOCKED = f"{_LAYER} for update"


# -- layers --------------------------------------------------------------------------------------


async def place(connection: asyncpg.Connection, organisation: int, scope: str, of: str) -> Place:
    """Return whose layer an address names. Raises NotFoundError."""
    if scope == Scope.ORGANISATION:
        return Place(Scope.ORGANISATION, "")
    if scope == Scope.MODEL:
        row = await connection.fetchval(
            "select exists (select from devices where organisation_id = $1 and model = $2)",
            *(organisation, of),
        )
        if of and row:
            return Place(Scope.MODEL, of)
    if scope == Scope.SITE:
        row = await connection.fetchval(
            "select id from sites where organisation_id = $1 and ref = $2", organisation, of
        )
        if row is not None:
            return Place(Scope.SITE, of, site=row)
    if scope == Scope.DEVICE:
        row = await connection.fetchrow(
            "select id, kind from devices where organisation_id = $1 and device = $2",
            *(organisation, of),
        )
        if row is not None:
            return Place(Scope.DEVICE, of, device=row["id"], kind=row["kind"])
    raise NotFoundError("there is no such layer")


async def find(
    connection: asyncpg.Connection, organisation: int, found: Place, *, lock: bool = False
) -> Held:
    """Return a layer; one that nobody has written has version 0."""
    row = await connection.fetchrow(
        _LAYER_LOCKED if lock else _LAYER, *(organisation, *_key(found))
    )
    if row is None:
        return Held(found, 0, {}, None)
    return Held(found, row["version"], _entries(row["entries"]), row["changed_at"])


async def listed(connection: asyncpg.Connection, organisation: int) -> list[Held]:
    """Return the layers that were ever written, the widest first."""
    rows = await connection.fetch(
        "select l.scope, coalesce(s.ref, d.device, l.model) as of, l.site_id, l.device_id, "
        "l.version, l.entries, l.changed_at from settings_layers l "
        "left join sites s on s.id = l.site_id left join devices d on d.id = l.device_id "
        "where l.organisation_id = $1 order by l.scope, 2",
        organisation,
    )
    found = [
        Held(
            Place(Scope(row["scope"]), row["of"], row["site_id"], row["device_id"]),
            row["version"],
            _entries(row["entries"]),
            row["changed_at"],
        )
        for row in rows
    ]
    return sorted(found, key=lambda held: (list(Scope).index(held.place.scope), held.place.of))


async def edit(
    connection: asyncpg.Connection,
    organisation: int,
    found: Place,
    values: Mapping[str, object],
    *,
    whole: bool = False,
    seen: str | None,
    reason: str = "",
    override_freeze: bool = False,
    actor: str,
    now: datetime,
) -> Held:
    """Change a layer; `seen`: its version, None for whatever it is.

    `override_freeze`: also while a freeze is on where one of its devices stands, for this reason.
    Raises FieldError, ChangedError, FrozenError, RefusedError (reason_needed); ConflictError where
    a rollout is changing the same.
    """
    await lock_organisation(connection, organisation)
    await lock_layers(connection, organisation)
    before = await find(connection, organisation, found, lock=True)
    if seen is not None and seen != str(before.version):
        raise ChangedError(f"{before.ref} was changed by somebody else meanwhile")
    made = _edited(before, values, whole=whole, by=actor, now=now)
    if not made.changes and made.entries == before.entries:
        return before
    await _demand_free(connection, organisation, found, made)
    devices_of = await devices(connection, organisation, found, now=now)
    await freezes.heed(
        *(connection, organisation, {each.site for each in devices_of}),
        f"settings of {before.ref}",
        override=override_freeze,
        reason=checks.line(reason, "reason"),
        actor=actor,
        now=now,
    )
    version = await _write(connection, organisation, found, made.entries, now=now)
    reached = [each.device for each in devices_of]
    await connection.execute("select pg_notify($1, device) from unnest($2::text[]) device",
                             CHANGED, reached)  # fmt: skip
    await record(
        connection,
        actor=actor,
        act="settings changed",
        subject=before.ref,
        detail={key: list(pair) for key, pair in made.changes.items()},
        organisation=organisation,
        now=now,
    )
    return Held(found, version, made.entries, now)


async def _write(
    connection: asyncpg.Connection,
    organisation: int,
    found: Place,
    entries: Mapping[str, Entry],
    *,
    now: datetime,
) -> int:
    """Store what a layer says; return its version."""
    version: int = await connection.fetchval(
        "insert into settings_layers (organisation_id, scope, model, site_id, device_id, entries, "
        "changed_at) values ($1, $2, $3, $4, $5, $6, $7) on conflict (organisation_id, scope, "
        "model, site_id, device_id) do update set entries = excluded.entries, "
        "changed_at = excluded.changed_at, version = settings_layers.version + 1 "
        "returning version",
        *(organisation, *_key(found)),
        json.dumps({key: asdict(entry) for key, entry in entries.items()}),
        now,
    )
    return version


async def lock_layers(connection: asyncpg.Connection, organisation: int) -> None:
    """Be the only one who edits an organisation's layers, or begins or ends a rollout of them."""
    await connection.execute("select pg_advisory_xact_lock($1, $2)", _LAYERS_LOCK, organisation)


async def _demand_free(
    connection: asyncpg.Connection, organisation: int, found: Place, made: Edit
) -> None:
    """Raise ConflictError if a rollout is changing one of these keys here."""
    row = await connection.fetchrow(
        _CHANGING, *(organisation, found.scope.value, found.of, found.device, list(made.changes))
    )
    if row is not None:
        raise ConflictError(f"{row['ref']} is changing {row['key']} here; cancel it first")


def _edited(
    before: Held, values: Mapping[str, object], *, whole: bool, by: str, now: datetime
) -> Edit:
    try:
        return checked_edit(
            before.entries,
            values,
            whole=whole,
            kind=before.place.kind,
            by=by,
            at=now.timestamp(),
        )
    except SettingError as error:
        raise FieldError(f"values.{error.key}", str(error)) from error


async def preview(
    connection: asyncpg.Connection,
    organisation: int,
    found: Place,
    values: Mapping[str, object],
    *,
    whole: bool = False,
    now: datetime,
) -> Preview:
    """Return whom an edit would reach, without making it. Raises FieldError."""
    before = await find(connection, organisation, found)
    made = _edited(before, values, whole=whole, by="", now=now)
    layers = await _all(connection, organisation)
    laid = await connection.fetch(_OVERLAYS, organisation, None)
    rollouts = {row["device_id"] for row in laid}
    key = _key(found)
    changed, sites = 0, dict[str, int]()
    reached = await devices(connection, organisation, found, now=now)
    known: dict[tuple[object, ...], bool] = {}
    for device in reached:
        own = _own(layers, device) or device.id in rollouts
        like = (device.kind, device.model, device.site, device.id if own else None)
        if like not in known:
            was = _stack(layers, device)
            layer = Layer(found.scope, found.of, made.entries)
            will = [*(each for k, each in was.items() if k != key), layer]
            over = _overlays(laid, device) if own else []
            known[like] = _values(
                merged(overlaid(was.values(), over), kind=device.kind)
            ) != _values(merged(overlaid(will, over), kind=device.kind))
        changed += known[like]
        sites[device.site_ref or ""] = sites.get(device.site_ref or "", 0) + 1
    return Preview(len(reached), changed, dict(sorted(sites.items())))


async def devices(
    connection: asyncpg.Connection, organisation: int, found: Place, *, now: datetime
) -> list[Device]:
    """Return the devices that a layer is about, by their names."""
    rows = await connection.fetch(
        f"{_DEVICES} where d.organisation_id = $2 and ($3 = '' or d.model = $3) "
        "and ($4::int is null or s.id = $4) and ($5::int is null or d.id = $5) order by d.device",
        *(now, organisation, found.of if found.scope is Scope.MODEL else ""),
        *(found.site, found.device),
    )
    return [Device(*row) for row in rows]


async def stacks(
    connection: asyncpg.Connection, organisation: int, found: Sequence[Device]
) -> dict[int, list[Layer]]:
    """Return the layers of each of these devices, with what rollouts lay over them."""
    layers = await _all(connection, organisation)
    laid: dict[int, list[asyncpg.Record]] = {}
    for row in await connection.fetch(_OVERLAYS, organisation, None):
        laid.setdefault(row["device_id"], []).append(row)
    return {
        device.id: overlaid(
            _stack(layers, device).values(), _overlays(laid.get(device.id, ()), device)
        )
        for device in found
    }


# -- a device ------------------------------------------------------------------------------------


async def told(
    connection: asyncpg.Connection, device: int, *, now: datetime
) -> tuple[int, dict[str, tuple[Value, int]]]:
    """Return what a device (its row, locked) is told now, and as which version; it is noted."""
    found = await _device(connection, device, now=now)
    settings = wanted(await _merged(connection, found))
    said = json.dumps(settings, sort_keys=True)
    version = await connection.fetchval(
        "insert into device_settings as s (device_id, organisation_id, told, told_at) "
        "values ($1, $2, $3::jsonb, $4) on conflict (device_id) do update set told_at = $4, "
        "organisation_id = $2, told = $3::jsonb, version = s.version + 1 where s.told <> $3::jsonb "
        "returning version",
        *(device, found.organisation, said, now),
    )
    if version is None:
        version = await connection.fetchval(
            "select version from device_settings where device_id = $1", device
        )
    return version, settings


async def noted(
    connection: asyncpg.Connection, device: int, report: Report, *, now: datetime
) -> None:
    """Keep what a device (its row, locked) says of its settings; commands are another matter."""
    said = {
        "agent": report.agent,
        "known": list(report.known),
        "values": dict(report.values),
        "refused": {key: list(each) for key, each in report.refused.items()},
    }
    await connection.execute(
        "insert into device_settings (device_id, organisation_id, told, told_at, report, "
        "reported_version, reported_at) select id, organisation_id, '{}', $4, $2, $3, $4 "
        "from devices where id = $1 on conflict (device_id) do update "
        "set report = $2, reported_version = $3, reported_at = $4, "
        "organisation_id = excluded.organisation_id",
        *(device, json.dumps(said), report.version, now),
    )


async def configuration(
    connection: asyncpg.Connection, organisation: int, device: str, *, now: datetime
) -> Configuration:
    """Return a device's settings with where they come from. Raises NotFoundError."""
    row = await connection.fetchrow(
        f"{_DEVICES} where d.organisation_id = $2 and d.device = $3", now, organisation, device
    )
    if row is None:
        raise NotFoundError(f"no device {device[:40]!r}")
    found = Device(*row)
    settings = await _merged(connection, found)
    kept = await connection.fetchrow(
        "select version, told, report, reported_version, reported_at from device_settings "
        "where device_id = $1",
        found.id,
    )
    if kept is None:
        nothing = states(settings, None, dealt_with=False)
        return Configuration(found, 0, None, None, "", nothing)
    report = _report(kept["report"])
    now_told = json.loads(json.dumps(wanted(settings)))
    dealt_with = (
        json.loads(kept["told"]) == now_told and kept["reported_version"] == kept["version"]
    )
    return Configuration(
        found,
        kept["version"],
        kept["reported_version"],
        kept["reported_at"],
        "" if report is None else report.agent,
        states(settings, report, dealt_with=dealt_with),
    )


def _report(said: str | None) -> Report | None:
    if said is None:
        return None
    found = json.loads(said)
    refused = {key: (int(pair[0]), str(pair[1])) for key, pair in found["refused"].items()}
    nothing: tuple[Outcome, ...] = ()
    return Report(found["agent"], "", 0, tuple(found["known"]), found["values"], refused, nothing)


async def merged_of(
    connection: asyncpg.Connection, device: int, *, now: datetime
) -> dict[str, Merged]:
    """Return a device's (its row's) settings, with what a rollout lays over its layers."""
    return await _merged(connection, await _device(connection, device, now=now))


async def _device(connection: asyncpg.Connection, device: int, *, now: datetime) -> Device:
    return Device(*await connection.fetchrow(f"{_DEVICES} where d.id = $2", now, device))


async def _merged(connection: asyncpg.Connection, found: Device) -> dict[str, Merged]:
    rows = await connection.fetch(
        f"{_LAYERS} and (l.scope = 'organisation' or (l.scope = 'model' and l.model = $2) "
        "or l.site_id = $3 or l.device_id = $4)",
        *(found.organisation, found.model, found.site, found.id),
    )
    overlays = await connection.fetch(_OVERLAYS, found.organisation, found.id)
    own = overlaid(_layers(rows).values(), _overlays(overlays, found))
    return merged(own, kind=found.kind)


def _overlays(rows: Sequence[asyncpg.Record], device: Device) -> list[Overlay]:
    """Return what is laid over layers that this device gets its settings from."""
    places = {
        Scope.MODEL: device.model,
        Scope.ORGANISATION: "",
        Scope.SITE: device.site_ref,
        Scope.DEVICE: device.device,
    }
    found = []
    for row in rows:
        said = json.loads(row["settings"])
        scope, of = Scope(said["scope"]), said["of"]
        if row["device_id"] == device.id and places[scope] == of:
            entries = {key: Entry(**each) for key, each in said["entries"].items()}
            found.append(Overlay(scope, of, entries))
    return found


_Key = tuple[str, str, int | None, int | None]


def _key(found: Place) -> _Key:
    model = found.of if found.scope is Scope.MODEL else ""
    return found.scope.value, model, found.site, found.device


async def _all(connection: asyncpg.Connection, organisation: int) -> dict[_Key, Layer]:
    return _layers(await connection.fetch(_LAYERS, organisation))


def _layers(rows: Sequence[asyncpg.Record]) -> dict[_Key, Layer]:
    return {
        (scope, model, site, device): Layer(Scope(scope), of, _entries(entries))
        for scope, model, site, device, of, entries in rows
    }


def _own(layers: Mapping[_Key, Layer], device: Device) -> bool:
    return (Scope.DEVICE.value, "", None, device.id) in layers


def _stack(layers: Mapping[_Key, Layer], device: Device) -> dict[_Key, Layer]:
    """Return those of an organisation's layers that a device gets its settings from."""
    keys: list[_Key] = [
        (Scope.ORGANISATION.value, "", None, None),
        (Scope.MODEL.value, device.model, None, None),
        (Scope.SITE.value, "", device.site, None),
        (Scope.DEVICE.value, "", None, device.id),
    ]
    return {key: layers[key] for key in keys if key in layers}


def _values(settings: Mapping[str, Merged]) -> dict[str, Value]:
    return {key: each.here.value for key, each in settings.items()}


def _entries(text: str) -> dict[str, Entry]:
    return {key: Entry(**each) for key, each in json.loads(text).items()}
