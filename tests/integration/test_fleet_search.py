"""What a filter finds in the database is what its words say, row by row."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.fleet import search, segments
from server.fleet.filters import (
    CONDITIONS,
    FIELDS,
    PRESENCES,
    Among,
    Compare,
    Either,
    Every,
    Filter,
    Not,
    Op,
    Sort,
    Typed,
    Value,
    parse,
    printed,
    value_of,
)
from server.fleet.search import EVERYWHERE, Within
from server.fleet.segments import Follows
from server.fleet.versions import key
from server.health.judgement import Condition
from server.health.presence import State as Presence
from tests.filter_trees import leaves, trees
from tests.integration.api_world import NOW, World

pytestmark = pytest.mark.services


def ago(**length: float) -> datetime:
    return NOW - timedelta(**length)


@dataclass(frozen=True)
class Device:
    """What the search knows of a device; None: not known."""

    device: str
    model: str | None = None
    kind: str = "counter"
    state: str = "never seen"
    agent: str | None = None
    site: str | None = None
    region: str | None = None
    days: float | None = None
    said: datetime | None = None
    stored: datetime | None = None
    serial: str | None = None
    wrong: tuple[str, ...] = ()

    def value(self, field: str) -> Typed | None:
        """Return a field's value, as this file and not the product understands it."""
        heard = max((at for at in (self.said, self.stored) if at is not None), default=None)
        found: dict[str, Typed | None] = {
            "device": self.device,
            "serial": self.serial,
            "model": self.model,
            "hardware": None,
            "kind": self.kind,
            "lifecycle": "in service",
            "state": self.state,
            "firmware": None if self.agent is None else key(re.split("[ /]", self.agent)[-1]),
            "agent": self.agent,
            "heard": heard,
            "silent": None if heard is None else NOW - heard,
            "site": self.site,
            "site.name": self.site and f"Name of {self.site}",
            "site.region": self.region,
            "spot": self.site and f"spot-{self.device}",
            "spot.name": self.site and "Över dörren",
            "incidents": float(len(self.wrong)),
            "certificate.days": self.days,
        }
        return found[field]


FLEET = (
    Device("dc-one1-x", "DC2", "counter", "offline", "vestibule 2.3.9", "lund", "Skåne", 12.5,
           ago(hours=3), None, "A-1", ("offline", "flapping")),
    Device("dc-two2-x", "DC2", "counter", "healthy", "vestibule 2.10", "lund", "Skåne", 200,
           ago(minutes=50), ago(minutes=3)),
    Device("dc-thr3-x", "dc2-Å", "counter", "no data", "agent/2.4rc1", "oslo", None, -1,
           ago(days=3), ago(days=2), 'a"b\\c', ("no_data",)),
    Device("fk-fou4-x", "FK1", "kiosk", "never seen"),
    Device("fk-fiv5-x", None, "kiosk", "healthy", "odd", "oslo", None, None, ago(minutes=1)),
    Device("fk-six6-x", "ΣΊΣΥΦΟΣ", "kiosk", "offline planned", "v2.4.0", None, None, 30.0,
           ago(days=9)),
)  # fmt: skip


@pytest.fixture
async def fleet(world: World) -> int:
    """The fleet above, and another organisation with a device that fits any filter."""
    own, other = await world.organisation("own"), await world.organisation("other")
    region = await world.owner.fetchval(
        "insert into regions (organisation_id, ref, name) values ($1, 'region-s', 'Skåne') "
        "returning id",
        own,
    )
    sites = {
        ref: await world.owner.fetchval(
            "insert into sites (organisation_id, ref, name, time_zone, region_id) "
            "values ($1, $2, 'Name of ' || $2, 'Europe/Oslo', $3) returning id",
            *(own, ref, region if ref == "lund" else None),
        )
        for ref in ("lund", "oslo")
    }
    for device in FLEET:
        await _add(world, own, device, sites)
    await _add(world, other, Device("dc-oth7-x", "DC2", agent="vestibule 2.3.9"), {})
    return own


async def _add(world: World, own: int, device: Device, sites: dict[str, int]) -> None:
    row = await world.owner.fetchval(
        "insert into devices (organisation_id, device, kind, model, serial, state) values "
        "($1, $2, $3, coalesce($4, ''), coalesce($5, ''), 'in service') returning id",
        *(own, device.device, device.kind, device.model, device.serial),
    )
    await world.owner.execute(
        "update presences set state = $2, agent = coalesce($3, ''), session_at = $4, "
        "session = case when $4::timestamptz is null then 'none' else 'open' end "
        "where device_id = $1",
        *(row, device.state, device.agent, device.said),
    )
    if device.stored is not None:
        await world.owner.execute(
            "update presences set data_at = $2 where device_id = $1", row, device.stored
        )
    if device.site is not None:
        spot = await world.owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, 'spot-' || $3, 'Över dörren', $4) returning id",
            *(own, sites[device.site], device.device, device.kind),
        )
        for valid in ((None, NOW - timedelta(days=9)), (NOW - timedelta(days=9), None)):
            await world.owner.execute(
                "insert into assignments (organisation_id, device_id, spot_id, valid) "
                "values ($1, $2, $3, tstzrange($4, $5))",
                *(own, row, spot, *valid),
            )
    for condition in device.wrong:
        await world.owner.execute(
            "with made as (insert into incidents (organisation_id, ref, key, subject, subject_id, "
            "condition, severity, since, opened_at, ready_at) values ($1, $4, $4, 'device', $2, "
            "$3, 'major', $5, $5, $5) returning *) insert into episodes (organisation_id, "
            "incident_id, subject, subject_id, condition, device_id, since, opened_at) "
            "select $1, id, subject, subject_id, condition, subject_id, $5, $5 from made",
            *(own, row, condition, f"{condition}-{row}", NOW),
        )
        await world.owner.execute(
            "insert into episodes (organisation_id, subject, subject_id, condition, device_id, "
            "since, opened_at, resolved_at, resolved) "
            "values ($1, 'device', $2, 'storage', $2, $3, $3, $3, 'clear')",
            *(own, row, NOW),
        )
    if device.days is not None:
        await world.owner.execute(
            "insert into certificates (serial, organisation_id, device_id, spki_sha256, not_after, "
            "state) values ($1, $2, $3, '', $4, 'active')",
            *(device.device, own, row, NOW + timedelta(days=device.days)),
        )


# -- the oracle: Python over rows ------------------------------------------------------------------


def fits(tree: Filter, device: Device) -> bool:
    match tree:
        case Compare():
            if tree.field == "condition":
                has = bool(device.wrong) if tree.none else tree.value.typed in device.wrong
                return has != ((tree.op is Op.IS_NOT) != tree.none)
            found = device.value(tree.field)
            if tree.none:
                return (found is None) == (tree.op is Op.IS)
            return compares(tree, found)
        case Among():
            wanted = [value.typed for value in tree.values]
            has = device.value(tree.field) in wanted if tree.field != "condition" else any(
                each in wanted for each in device.wrong
            )  # fmt: skip
            return has != tree.negated
        case Not():
            return not fits(tree.inner, device)
        case Every():
            return all(fits(part, device) for part in tree.parts)
        case Either():
            return any(fits(part, device) for part in tree.parts)
        case _ as never:
            assert_never(never)


def compares(leaf: Compare, found: Typed | None) -> bool:
    wanted = leaf.value.typed
    if leaf.op in (Op.IS_NOT, Op.HAS_NOT):
        positive = Op.IS if leaf.op is Op.IS_NOT else Op.HAS
        return not compares(Compare(leaf.field, positive, leaf.value), found)
    if found is None:
        return False
    if leaf.op is Op.HAS:
        return folded(str(wanted)) in folded(str(found))
    tests: dict[Op, Callable[[Typed, Typed], bool]] = {
        Op.IS: lambda a, b: a == b,
        Op.LESS: lambda a, b: a < b,  # type: ignore[operator]
        Op.AT_MOST: lambda a, b: a <= b,  # type: ignore[operator]
        Op.MORE: lambda a, b: a > b,  # type: ignore[operator]
        Op.AT_LEAST: lambda a, b: a >= b,  # type: ignore[operator]
    }
    return tests[leaf.op](found, wanted)


def folded(text: str) -> str:
    """Return each character by itself in lower case, as the database has it."""
    return "".join(low if len(low := each.lower()) == 1 else each for each in text)


def known(name: str) -> st.SearchStrategy[Value]:
    """Values of a field that the fleet has, or nearly."""
    field = FIELDS[name]
    texts = {
        Sort.CHOICE: list(field.choices),
        Sort.TEXT: [
            "DC2",
            "lund",
            "Skåne",
            "skå",
            "c",
            "dc-one1-x",
            'a"b\\c',
            "σίσ",
            "å",
            "%",
            "x",
        ],
        Sort.VERSION: ["2.3.9", "2.4", "2.4.0-rc1", "2.10", "0"],
        Sort.NUMBER: ["12.5", "-1", "30", "0", "1000"],
        Sort.DURATION: ["3m", "3h", "9d", "50m", "0s"],
        Sort.INSTANT: ["2026-04-02T09:00Z", "2026-03-31", "2026-04-02T11:57:00Z"],
    }[field.sort]
    return st.sampled_from(texts).map(lambda text: value_of(field, text))


NAMES = st.sampled_from(sorted(FIELDS))
FILTERS = trees(NAMES.flatmap(lambda name: leaves(name, known(name))))


async def found_by(world: World, own: int, tree: Filter, within: Within = EVERYWHERE) -> list[str]:
    selected = search.selection(tree, organisation=own, now=NOW, within=within)
    async with world.api.acquire() as connection, connection.transaction():
        await connection.execute("select set_config('app.organisation', $1, true)", str(own))
        names = [name for _, name in await search.found(connection, selected)]
        assert await search.number(connection, selected) == len(names)
    return names


async def test_the_database_finds_what_fits_row_by_row(world: World, fleet: int) -> None:
    drawn: list[Filter] = []

    @settings(
        max_examples=250,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(FILTERS)
    def draw(tree: Filter) -> None:
        drawn.append(tree)

    draw()
    hits = 0
    for tree in drawn:
        expected = sorted(device.device for device in FLEET if fits(tree, device))
        assert await found_by(world, fleet, tree) == expected, printed(tree)
        hits += 0 < len(expected) < len(FLEET)
    assert hits > len(drawn) // 4  # else it would prove little


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["dc-one1-x", "dc-thr3-x", "dc-two2-x", "fk-fiv5-x", "fk-fou4-x", "fk-six6-x"]),
        ('model = DC2 and state = offline and site.region = "Skåne" and firmware < 2.4',
         ["dc-one1-x"]),
        ("firmware >= 2.4", ["dc-two2-x", "fk-six6-x"]),
        ("firmware in (2.4, 2.3.9)", ["dc-one1-x", "fk-six6-x"]),
        ("firmware = none", ["fk-fiv5-x", "fk-fou4-x"]),
        ("not firmware >= 2.4", ["dc-one1-x", "dc-thr3-x", "fk-fiv5-x", "fk-fou4-x"]),
        ("site != lund", ["dc-thr3-x", "fk-fiv5-x", "fk-fou4-x", "fk-six6-x"]),
        ("site = none", ["fk-fou4-x", "fk-six6-x"]),
        ("silent > 2h and certificate.days < 14", ["dc-one1-x", "dc-thr3-x"]),
        ("model ~ å or model ~ σίσυ", ["dc-thr3-x", "fk-six6-x"]),
        ("model ~ \"' or true --\"", []),
        ("condition = no_data or condition in (flapping, storage)", ["dc-one1-x", "dc-thr3-x"]),
        ("condition != offline and incidents > 0", ["dc-thr3-x"]),
        ("condition = none and kind = counter", ["dc-two2-x"]),
        ("incidents = 2", ["dc-one1-x"]),
        ("certificate.days > 999999999 or certificate.days < -999999999", []),
        ("kind = kiosk and state not in (healthy, never_seen)", ["fk-six6-x"]),
    ],
)  # fmt: skip
async def test_an_operators_filters_find_what_they_say(
    world: World, fleet: int, text: str, expected: list[str]
) -> None:
    assert await found_by(world, fleet, parse(text)) == expected


async def test_a_reader_of_some_places_finds_devices_there_alone(world: World, fleet: int) -> None:
    region, site = await world.owner.fetchrow(
        "select (select id from regions), (select id from sites where ref = 'oslo')"
    ) or (0, 0)
    everything = parse("")
    assert await found_by(world, fleet, everything, Within([region])) == ["dc-one1-x", "dc-two2-x"]
    assert await found_by(world, fleet, everything, Within([], [site])) == [
        "dc-thr3-x",
        "fk-fiv5-x",
    ]
    assert await found_by(world, fleet, parse("kind = kiosk or kind = counter"), Within([])) == []


async def test_versions_are_in_the_database_what_they_are_in_python(world: World) -> None:
    texts = ["2.4", "v2.4.0-rc.2", "2.10.1", "1.2.3.4", "1.2.3.4.5", "2.4dev3", "2.4-b", "odd", "",
             "2.4+build.7", "2.", "999999999.1"]  # fmt: skip
    for text in texts:
        for agent in (text, f"name {text}", f"name/{text}"):
            made = await world.owner.fetchval("select version_key($1)", agent)
            assert (None if made is None else tuple(made)) == key(text), agent


def test_the_presences_and_conditions_of_filters_are_those_that_are_judged() -> None:
    assert sorted(PRESENCES) == sorted(Presence)
    others = {Condition.PLATFORM_UNKNOWN, Condition.SITE_OFFLINE}  # of no device
    assert set(CONDITIONS) == set(Condition) - others


async def test_the_api_finds_by_filter_page_by_page(world: World, fleet: int) -> None:
    found = await world.get("/devices?filter=kind%20%3D%20counter&limit=2")
    assert [row["device"] for row in found["data"]] == ["dc-one1-x", "dc-thr3-x"]
    assert found["data"][0]["presence"] == "offline"
    rest = await world.get(f"/devices?filter=kind%20%3D%20counter&cursor={found['next']}")
    assert [row["device"] for row in rest["data"]] == ["dc-two2-x"]
    status, problem = await world.ask("/devices?filter=modell%20%3D%20DC2")
    assert (status, problem["code"], problem["parameter"]) == (400, "bad_filter", "filter")
    assert problem["detail"].startswith("character 1: no field `modell`; known: device, serial")
    assert len((await world.get("/device-fields"))["data"]) == len(FIELDS)


async def test_a_snapshot_stays_and_a_live_segment_follows(world: World, fleet: int) -> None:
    async with world.owner.transaction():
        made = {
            follows: await segments.add(
                world.owner,
                fleet,
                name=follows,
                text="state=offline",
                follows=follows,
                actor="test",
                now=NOW,
            )
            for follows in Follows
        }
    assert made[Follows.SNAPSHOT].number == 1
    assert made[Follows.LIVE].number is None
    await world.owner.execute("update presences set state = 'offline' where state = 'healthy'")
    await world.owner.execute(
        "update presences set state = 'healthy' from devices d "
        "where d.id = device_id and d.device = 'dc-one1-x'"
    )
    for follows, expected in (
        (Follows.SNAPSHOT, ["dc-one1-x"]),
        (Follows.LIVE, ["dc-two2-x", "fk-fiv5-x"]),
    ):
        found = await world.get(f"/devices?segment={made[follows].ref}")
        assert [row["device"] for row in found["data"]] == expected
    listed = await world.get("/segments")
    assert [(row["follows"], row["devices"]) for row in listed["data"]] == [
        ("live", None),
        ("snapshot", 1),
    ]
    assert listed["data"][0]["filter"] == "state = offline"
    status, problem = await world.ask(
        f"/devices?segment={made[Follows.LIVE].ref}&filter=kind=kiosk"
    )
    assert (status, problem["code"]) == (400, "bad_parameter")
