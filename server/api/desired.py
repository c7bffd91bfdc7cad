"""The routes of /v1 about settings: what there are, what each place says, what a device gets."""

from datetime import UTC, datetime

import msgspec

from protocol.settings import TABLE
from server.api.acts import Act, ActRoute, written
from server.api.parameters import Nothing
from server.api.reads import Call, Route
from server.api.types import Page
from server.desired import settings
from server.desired.layers import Merged, Scope, Source, State
from server.desired.settings import Configuration, Held
from server.errors import NotFoundError

WRITE = "settings:write"
Value = int | str


class SettingRow(msgspec.Struct, frozen=True):
    """A setting: one of `choices`, else a whole number from `low` to `high`, else an address.

    One that `cuts` is tried first: a device that cannot reach us with it goes back by itself.
    """

    setting: str
    about: str
    unit: str
    default: Value
    low: int | None
    high: int | None
    choices: list[Value]
    devices: list[str]
    cuts: bool
    since: str


class SettingsWrite(msgspec.Struct, forbid_unknown_fields=True):
    """Values by setting; null takes one out. What is given again is tried again.

    While a freeze is on where a device of it stands it is refused (`frozen`), unless
    `override_freeze` is true and a `reason` says why it can't wait.
    """

    values: dict[str, Value | None]
    reason: str = ""
    override_freeze: bool = False


class SettingsPreview(msgspec.Struct, forbid_unknown_fields=True):
    """An edit to be looked at first: of a `scope` with its reference (an organisation has none)."""

    scope: Scope
    values: dict[str, Value | None]
    of: str = ""
    whole: bool = False


class EntryRecord(msgspec.Struct, frozen=True):
    """A value, since when, and by whom."""

    value: Value
    at: datetime
    by: str


class SettingsRecord(msgspec.Struct, frozen=True):
    """What one place says of settings; version 0: nothing was ever written."""

    scope: Scope
    of: str
    version: int
    values: dict[str, EntryRecord]


class LayerRow(msgspec.Struct, frozen=True):
    """A place that has ever said something."""

    scope: Scope
    of: str
    version: int
    settings: list[str]
    changed_at: datetime | None


class PreviewRecord(msgspec.Struct, frozen=True):
    """Whom an edit reaches, how many of them get another value, and how many stand where."""

    devices: int
    changed: int
    sites: dict[str, int]


class SourceRecord(msgspec.Struct, frozen=True):
    """A value and which layer says so; `at` and `by` are null for a default."""

    value: Value
    scope: Scope
    of: str
    at: datetime | None
    by: str | None


class ConfiguredSetting(msgspec.Struct, frozen=True):
    """A setting of a device: why it is so, what it would be without, and what became of it."""

    setting: str
    wanted: SourceRecord
    without: SourceRecord
    reported: Value | None
    state: str
    code: str


class ConfigurationRecord(msgspec.Struct, frozen=True):
    """A device's settings; `reported_version` is the version that it has dealt with."""

    device: str
    version: int
    reported_version: int | None
    reported_at: datetime | None
    agent: str
    settings: list[ConfiguredSetting]


async def _table(call: Call, asked: Nothing) -> Page[SettingRow]:
    del call, asked
    return Page(
        [
            SettingRow(
                each.key,
                each.about,
                each.unit,
                each.default,
                each.low if each.high else None,
                each.high or None,
                list(each.choices),
                sorted(each.devices),
                each.cuts,
                each.since,
            )
            for each in TABLE.values()
        ]
    )


async def _layers(call: Call, asked: Nothing) -> Page[LayerRow]:
    del asked
    found = await settings.listed(call.connection, await call.organisation())
    return Page(
        [
            LayerRow(
                held.place.scope, held.place.of, held.version, sorted(held.entries), held.changed_at
            )
            for held in found
        ]
    )


async def _preview(call: Call, asked: SettingsPreview) -> PreviewRecord:
    organisation = await call.organisation()
    place = await settings.place(call.connection, organisation, asked.scope, asked.of)
    found = await settings.preview(
        call.connection, organisation, place, asked.values, whole=asked.whole, now=call.now
    )
    return PreviewRecord(found.devices, found.changed, dict(found.sites))


async def _configuration(call: Call, asked: Nothing) -> ConfigurationRecord:
    del asked
    organisation, device = await call.organisation(), call.path["ref"]
    return configured(
        await settings.configuration(call.connection, organisation, device, now=call.now)
    )


def configured(found: Configuration) -> ConfigurationRecord:
    """Return a device's settings as they are answered."""
    return ConfigurationRecord(
        found.device.device,
        found.version,
        found.reported_version,
        found.reported_at,
        found.agent,
        [_setting(each.merged, each) for each in found.states.values()],
    )


def _setting(merged: Merged, state: State) -> ConfiguredSetting:
    return ConfiguredSetting(
        merged.key,
        _source(merged.here),
        _source(merged.without),
        state.reported,
        state.standing.value,
        state.code,
    )


def _source(source: Source) -> SourceRecord:
    entry = source.entry
    at = None if entry is None else datetime.fromtimestamp(entry.at, UTC)
    return SourceRecord(
        source.value, source.scope, source.of, at, None if entry is None else entry.by
    )


async def _place(act: Act, scope: Scope) -> settings.Place:
    of = act.path.get("ref", "")
    if len(of) > 300:
        raise NotFoundError("there is no such layer")
    return await settings.place(act.connection, act.organisation, scope, of)


def _routes(path: str, whose: str, scope: Scope) -> tuple[ActRoute, ...]:
    async def read(act: Act) -> SettingsRecord:
        place = await _place(act, scope)
        return _record(await settings.find(act.connection, act.organisation, place))

    async def edit(act: Act, body: SettingsWrite, *, whole: bool = False) -> SettingsRecord:
        place = await _place(act, scope)
        return _record(
            await settings.edit(
                act.connection,
                act.organisation,
                place,
                body.values,
                whole=whole,
                seen=act.seen,
                reason=body.reason,
                override_freeze=body.override_freeze,
                **act.by,
            )
        )

    async def replace(act: Act, body: SettingsWrite) -> SettingsRecord:
        return await edit(act, body, whole=True)

    return (
        ActRoute("GET", path, f"What {whose} says of settings", SettingsRecord, read),
        ActRoute(
            *("PATCH", path, f"Change some of {whose}'s settings", SettingsRecord),
            *(edit, SettingsWrite),
        ),
        ActRoute(
            *("PUT", path, f"Replace {whose}'s settings", SettingsRecord, replace, SettingsWrite),
            compares=True,
        ),
    )


def _record(held: Held) -> SettingsRecord:
    values = {
        key: EntryRecord(each.value, datetime.fromtimestamp(each.at, UTC), each.by)
        for key, each in held.entries.items()
    }
    return SettingsRecord(held.place.scope, held.place.of, held.version, values)


ROUTES = (
    Route("/settings:table", "What can be set", Nothing, Page[SettingRow], SettingRow, _table),
    Route(
        "/settings:layers",
        "Who has ever said something of settings",
        Nothing,
        Page[LayerRow],
        LayerRow,
        _layers,
    ),
    Route(
        "/settings:preview",
        "Whom an edit would reach",
        Nothing,
        PreviewRecord,
        None,
        _preview,
        method="POST",
        body=SettingsPreview,
    ),
    Route(
        "/devices/{ref}/configuration",
        "A device's settings, why they are so, and what became of them",
        Nothing,
        ConfigurationRecord,
        None,
        _configuration,
    ),
)
ACTS = written(
    WRITE,
    *_routes("/settings", "the organisation", Scope.ORGANISATION),
    *_routes("/models/{ref}/settings", "a model", Scope.MODEL),
    *_routes("/sites/{ref}/settings", "a site", Scope.SITE),
    *_routes("/devices/{ref}/settings", "a device", Scope.DEVICE),
)
