"""The views for BI tools, as such a tool reads them: its organisation alone, the API's numbers."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from ops import bi
from ops.services.stack import Stack
from server.db import lingering
from server.db.engine import DATABASE_AWAY
from server.errors import NotFoundError
from server.insight.definitions import REGISTRY
from tests.integration.api_world import World, utc
from tests.integration.metrics_world import rows, sell, store

pytestmark = pytest.mark.services

SPRING, AUTUMN = date(2025, 3, 30), date(2025, 10, 26)
VIEWS = {
    *("sites", "doors", "spots", "visits_15min", "visits_hour", "visits_day"),
    *("site_visits_day", "feedback_day", "sales_day", "definitions"),
}
NOT_ALLOWED = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.UndefinedTableError,
    asyncpg.InvalidParameterValueError,
)
SIZES = {"15m": "visits_15min", "hour": "visits_hour", "day": "visits_day"}


class Tool:
    """What has a login: `vestibule bi` made it, and ends it."""

    def __init__(self, stack: Stack, database: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._stack, self._database, self._capsys = stack, database, capsys
        self.connections: list[asyncpg.Connection] = []
        self.logins: dict[str, str] = {}

    async def login(self, organisation: str) -> str:
        """Make a login; return its name."""
        self._capsys.readouterr()
        await bi.run(["add", organisation, "--note", "Power BI"])
        said = dict(line.split("\t") for line in self._capsys.readouterr().out.splitlines())
        assert said["schema"] == "bi"
        self.logins[said["user"]] = said["password"]
        return said["user"]

    async def connect(self, login: str) -> asyncpg.Connection:
        """Sign in as a BI tool does."""
        found = self._stack.endpoints
        password = quote(self.logins[login], safe="")
        connection = await asyncpg.connect(
            f"postgresql://{login}:{password}@{found.pg_host}:{found.pg_port}/{self._database}"
        )
        self.connections.append(connection)
        return connection

    async def of(self, organisation: str) -> asyncpg.Connection:
        return await self.connect(await self.login(organisation))


@pytest.fixture
async def tool(
    stack: Stack,
    world: World,
    world_database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> AsyncIterator[Tool]:
    monkeypatch.setenv("VESTIBULE_DSN_ADMIN", stack.endpoints.dsn("admin", world_database))
    made = Tool(stack, world_database, capsys)
    world.clock.advance(datetime.now(UTC).timestamp() - world.clock.now_ms() / 1000)
    try:
        yield made
    finally:
        for connection in made.connections:
            await connection.close()
        for (left,) in await world.owner.fetch("select role from bi_logins"):
            await bi.run(["remove", left])


MARKED = (date(2025, 3, 29), SPRING, AUTUMN, AUTUMN + timedelta(days=1))


async def chain(
    world: World,
    name: str,
    *,
    zone: str = "Europe/Stockholm",
    days: tuple[date, ...] = MARKED,
) -> int:
    """Add a shop with doors in series and beside each other, counted on days of every kind."""
    organisation = await world.organisation(name)
    site = await world.site(organisation, f"{name}-shop", zone=zone, hours=(600, 1200))
    doors = [
        await world.owner.fetchval(
            "insert into doors (organisation_id, site_id, ref, name) values ($1, $2, $3, $3) "
            "returning id",
            *(organisation, site, f"{name}-{number}"),
        )
        for number in range(3)
    ]
    await world.owner.execute("update doors set behind_id = $1 where id = $2", doors[0], doors[1])
    since = utc("2025-03-29T09:07")
    for number, (door, spot) in enumerate(zip(doors, ("outer", "inner", "side"), strict=True)):
        key = await world.spot(
            organisation, site, f"{name}-{spot}", assigned=since, stored_to=datetime.now(UTC)
        )
        await world.owner.execute("update spots set door_id = $2 where id = $1", key, door)
        for day in days:
            begins = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=2)
            quarters = [
                (begins + timedelta(minutes=15 * n), 3 * n % 17 + number, n % 5)
                for n in range(number, 96, 1 + number)
            ]
            await store(world, key, quarters)
    first = await world.owner.fetchval("select min(id) from spots where organisation_id = $1",
                                       organisation)  # fmt: skip
    for line, turned, low, high in (
        (0, False, "2025-03-30T08:07", None),
        (0, True, "2025-03-29T12:00", "2025-03-30T08:07"),
        (1, False, "2025-10-26T00:00", "2025-10-26T11:00"),
    ):
        await world.owner.execute(
            "insert into calibrations (organisation_id, spot_id, line, valid, reversed, factor) "
            "values ($1, $2, $3, tstzrange($4, $5), $6, 0.9312)",
            *(organisation, first, line, utc(low), utc(high) if high else None, turned),
        )
    return organisation


async def compared(world: World, login: asyncpg.Connection, size: str, day: date) -> int:
    """Hold a view's rows of a day to the API's; return how many there were."""
    asked = f"from={day}&to={day + timedelta(days=1)}&bucket={size}&by=spot&limit=20000"
    answer = await world.get(f"/counts?{asked}")
    found = {
        (row["spot"], row["starts_at"]): row
        for row in await login.fetch(
            f"select * from bi.{SIZES[size]} where day = $1",
            day,
        )
    }
    assert len(found) == len(answer["data"]), (size, day)
    for row in answer["data"]:
        key = row["spot"], datetime.fromisoformat(row["from"])
        mine = found[key]
        assert mine["ends_at"] == datetime.fromisoformat(row["until"])
        for name in ("visits", "exits", "coverage"):
            same = None if mine[name] is None else float(mine[name])
            assert same == (None if row[name] is None else pytest.approx(row[name])), (name, row)
        assert (mine["state"], mine["revision"]) == (row["state"], row["revision"]), row
    return len(found)


@pytest.mark.parametrize("derived", [True, False])
async def test_the_views_say_what_the_api_says_on_days_of_every_length(
    world: World, tool: Tool, derived: bool
) -> None:
    await chain(world, "own")
    await chain(world, "other")
    if derived:
        await world.derive()
    login = await tool.of("own")
    hours = {SPRING: 23, AUTUMN: 25, date(2025, 3, 29): 24, date(2025, 4, 1): 24}
    for day, length in hours.items():
        assert await compared(world, login, "day", day) == 3
        assert await compared(world, login, "hour", day) == 3 * length
        assert await compared(world, login, "15m", day) == 3 * 4 * length
    empty = await login.fetch("select * from bi.visits_day where day = '2025-04-01'")
    assert [(row["visits"], float(row["coverage"])) for row in empty] == [(None, 0.0)] * 3
    visits = await rows(
        world, metrics=["visits", "exits"], from_="2025-03-29", to="2025-04-02", scope="all"
    )
    per_day = {
        row["day"].isoformat(): row
        for row in await login.fetch("select * from bi.site_visits_day where day < '2025-04-02'")
    }
    assert len(visits) == 2 * 4
    for row in visits:
        mine = per_day[row["local"]]
        value = mine["visits" if row["metric"].startswith("visits") else "exits"]
        assert (None if value is None else float(value)) == (
            None if row["value"] is None else pytest.approx(row["value"])
        ), row
        assert float(mine["coverage"]) == pytest.approx(row["coverage"]), row
    for day in hours:
        asked = f"from={day}&to={day + timedelta(days=1)}"
        (row,) = (await world.get(f"/counts?{asked}"))["data"]
        mine = per_day.get(row["local"]) or await login.fetchrow(
            "select * from bi.site_visits_day where day = $1", day
        )
        for name in ("visits", "exits", "coverage"):
            same = None if mine[name] is None else float(mine[name])
            assert same == (None if row[name] is None else pytest.approx(row[name])), (name, row)


@pytest.mark.long
@pytest.mark.parametrize("zone", ["America/Havana", "Asia/Kolkata", "Australia/Lord_Howe"])
async def test_hours_and_days_are_those_of_every_zone(world: World, tool: Tool, zone: str) -> None:
    moved = (date(2025, 4, 6), date(2025, 10, 5), date(2025, 11, 2))
    around = {day + timedelta(days=n) for day in moved for n in (-1, 0, 1)}
    await chain(world, "own", zone=zone, days=tuple(sorted(around)))
    login = await tool.of("own")
    for day in moved:
        assert await compared(world, login, "day", day) == 3
        assert await compared(world, login, "hour", day) >= 3 * 24


async def test_what_is_recent_is_open_or_complete_and_what_is_read_by_the_hour_has_no_quarters(
    world: World, tool: Tool
) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop")
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    silent = await world.spot(own, site, "silent", stored_to=noon - timedelta(days=3, hours=1),
                              assigned=noon - timedelta(days=8))  # fmt: skip
    gapped = await world.spot(own, site, "gapped", stored_to=noon - timedelta(days=3, hours=1),
                              assigned=noon - timedelta(days=8))  # fmt: skip
    await world.owner.execute(
        "insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, "
        "until_at, reason) select organisation_id, device_id, $1, $1, 1, 2, $2, $3, 'rotted' "
        "from assignments where spot_id = $1",
        *(gapped, noon - timedelta(days=4), noon - timedelta(days=1)),
    )
    for spot in (silent, gapped):
        await world.minutes(spot, noon - timedelta(days=4), [(7, 1)] * 5, interval_s=3600)
    login = await tool.of("own")
    days = [(noon - timedelta(days=ago)).date() for ago in (2, 3, 4, 5)]
    for day in days:
        assert await compared(world, login, "day", day) == 2
        assert await compared(world, login, "hour", day) >= 2 * 23
    states = {
        (row["spot"], row["day"]): row["state"]
        for row in await login.fetch("select spot, day, state from bi.visits_day")
    }
    assert states["silent", days[0]] == "open"
    assert states["gapped", days[0]] == "complete"
    coarse = await login.fetch("select visits from bi.visits_15min where read_every_s = 3600")
    assert len(coarse) == 2 * 5 * 4
    assert {row["visits"] for row in coarse} == {None}


async def test_feedback_and_sales_are_the_apis(world: World, tool: Tool) -> None:
    own = await chain(world, "own")
    site = await world.owner.fetchval("select id from sites")
    kiosk = await world.spot(own, site, "own-kiosk", kind="kiosk", assigned=utc("2025-03-01T00:00"))
    for at, answers in (("2025-03-30T09:00", {0: 5, 3: 2}), ("2025-03-30T22:15", {1: 4})):
        await world.presses(kiosk, utc(at), answers, questionnaire=-77)
    for day in (SPRING, date(2025, 3, 31)):
        await sell(world, own, site, day, 100.5, 20, -7, at=23)
    await world.derive()
    login = await tool.of("own")
    asked = "from=2025-03-30&to=2025-04-01&bucket=day&by=spot"
    for row in (await world.get(f"/feedback?{asked}"))["data"]:
        found = await login.fetch(
            "select answer, presses from bi.feedback_day "
            "where day = $1 and questionnaire = $2 and question = $3",
            *(date.fromisoformat(row["local"]), row["questionnaire"], row["question"]),
        )
        mine = {each["answer"]: each["presses"] for each in found}
        assert mine == {n: count for n, count in enumerate(row["answers"]) if count}
        assert row["n"] == sum(mine.values()) > 0
    waiting = await login.fetch("select distinct pending, kept from bi.feedback_day")
    assert [tuple(row) for row in waiting] == [(True, None)]  # to be filtered: said, not hidden
    kpis = ["transactions", "net_sales", "units", "returns"]
    sold = {row["day"].isoformat(): row for row in await login.fetch("select * from bi.sales_day")}
    for row in await rows(world, metrics=kpis, from_="2025-03-30", to="2025-04-01", scope="all"):
        name = row["metric"].split(".")[0]
        assert float(sold[row["local"]][name]) == row["value"] > 0, row


async def test_a_login_sees_its_own_organisation_alone_and_nothing_binds_it_to_another(
    world: World, tool: Tool
) -> None:
    own, other = await chain(world, "own"), await chain(world, "other")
    site = await world.owner.fetchval("select id from sites where organisation_id = $1", other)
    kiosk = await world.spot(other, site, "other-kiosk", kind="kiosk")
    await world.presses(kiosk, utc("2025-03-30T09:00"), {0: 5})
    await sell(world, other, site, SPRING, 100)
    await world.derive()
    login, rival = await tool.of("own"), await tool.of("other")
    named = {
        row[0]
        for row in await login.fetch(
            "select table_name from information_schema.tables "
            "where table_schema in ('bi', 'public')"
        )
    }
    assert named == VIEWS
    for view in VIEWS - {"definitions"}:
        ask = f"select distinct site from bi.{view}"
        assert {row[0] for row in await rival.fetch(ask)} == {"other-shop"}, view
    tries = (
        "select 1",
        f"set app.organisation = '{other}'",
        "set app.everyone = 'yes'",
        "set default_transaction_read_only = off",
    )
    for attempt in tries:
        await login.execute(attempt)
        for view in VIEWS - {"definitions"}:
            ask = f"select distinct site from bi.{view}"
            assert {row[0] for row in await login.fetch(ask)} <= {"own-shop"}, (attempt, view)
    # A condition that tells what it is asked of is not asked of another's rows.
    with pytest.raises(asyncpg.DivisionByZeroError):
        await login.fetch("select from bi.sites where 1 / (length(site) - length('own-shop')) = 1")
    assert not await login.fetch(
        "select from bi.sites where 1 / (length(site) - length('other-shop')) = 7"
    )
    assert own != other


async def test_a_login_cannot_write_nor_read_what_the_views_are_made_of(
    world: World, tool: Tool
) -> None:
    await chain(world, "own")
    name = await tool.login("own")
    rival = await tool.login("own")
    login = await tool.connect(name)
    await login.execute("set default_transaction_read_only = off")
    tables = [
        row[0]
        for row in await world.owner.fetch(
            "select quote_ident(schemaname) || '.' || quote_ident(tablename) from pg_tables "
            "where schemaname = 'public' or tablename like '\\_hyper%' union all "
            "select 'public.' || quote_ident(viewname) from pg_views where schemaname = 'public'"
        )
    ]
    assert len(tables) > 60
    refused = [f"select from {table}" for table in tables]
    refused += [
        "insert into bi.sites (site) values ('x')",
        "update bi_logins set organisation_id = 2",
        "delete from bi.sales_day",
        "create table bi.mine (a int)",
        "create table public.mine (a int)",
        "create temporary table mine (a int)",
        "create view bi.mine as select 1",
        "create schema mine",
        "create role mine",
        "alter view bi.sites set (security_barrier = false)",
        f"alter role {name} rename to {rival}",
        f"alter role {name} connection limit 99",
        f"alter role {name} superuser",
        f"set role {rival}",
        "set role vestibule_owner",
        "set role vestibule_api",
        f"set session authorization {rival}",
        f"grant {rival} to {name}",
        "select pg_advisory_lock(7120015)",
        "select lo_from_bytea(0, 'x')",
        "select pg_current_xact_id()",
        "select txid_current()",
        "select pg_logical_emit_message(true, 'x', 'y')",
        "set temp_file_limit = -1",
        "select public.api_key_holder('12345678')",
        "select pg_read_file('/etc/passwd')",
        "copy (select 1) to '/tmp/x'",
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'vestibule_owner'",
        "listen x; notify x; select from bi_logins",
    ]
    done = []
    for statement in refused:
        try:
            done.append(f"{statement}: {await login.execute(statement)}")
        except NOT_ALLOWED:
            continue
    assert done == []
    runs_as_its_owner = await login.fetch(
        "select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
        "where p.prosecdef and n.nspname in ('public', 'bi') "
        "and p.prorettype <> 'trigger'::regtype and has_function_privilege(p.oid, 'execute')"
    )
    assert {row[0] for row in runs_as_its_owner} <= {"current_dataset"}  # a number of no use


async def test_a_transaction_that_lingers_is_ended_whatever_the_login_asks_for(
    world: World, tool: Tool
) -> None:
    await world.organisation("own")
    patient = await tool.of("own")
    name = await tool.login("own")
    login = await tool.connect(name)
    for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
        await login.execute(f"set {setting} = 0")
    await login.execute("begin read write")
    assert await login.fetch("select * from bi.sites") == []
    assert await world.maint.fetchval("select count(*) from pg_stat_activity where usename = $1",
                                      name) == 1  # fmt: skip
    assert await lingering.end(world.maint, most=timedelta(days=1)) == []
    assert await lingering.end(world.maint, most=timedelta(0)) == [name]
    with pytest.raises(DATABASE_AWAY):
        await login.fetch("select * from bi.sites")
    assert await patient.fetch("select * from bi.sites") == []
    assert await world.owner.fetchval("select 1") == 1


async def test_logins_never_take_the_connections_that_the_server_needs(
    world: World, tool: Tool
) -> None:
    await world.organisation("own")
    name = await tool.login("own")
    assert int(await world.owner.fetchval("show reserved_connections")) == 40
    for role, reserved in ((name, False), *((f"vestibule_{each}", True) for each in OURS)):
        assert await world.owner.fetchval(_RESERVED, role) is reserved, role


OURS = ("owner", "ingest", "api", "desk", "maint")
_RESERVED = "select pg_has_role($1::name, 'pg_use_reserved_connections', 'usage')"


async def test_a_login_is_limited_shown_once_listed_and_ended_at_once(
    world: World, tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    await world.organisation("own")
    name = await tool.login("own")
    first = await tool.connect(name)
    assert await first.fetchval("show statement_timeout") == "2min"
    assert await first.fetchval("show transaction_read_only") == "on"
    for _ in range(bi.CONNECTIONS - 1):
        await tool.connect(name)
    with pytest.raises(asyncpg.TooManyConnectionsError):
        await tool.connect(name)
    await bi.run(["list"])
    said = capsys.readouterr().out
    assert said.startswith(f"{name}\town\tPower BI\tcreated ")
    assert said.endswith("3 connected\n")
    assert tool.logins[name] not in said
    acts = await world.owner.fetch("select act, detail::text from audit where act like 'bi %'")
    assert [row["act"] for row in acts] == ["bi login created"]
    assert tool.logins[name] not in acts[0]["detail"]
    await bi.run(["remove", name])
    async with asyncio.timeout(20):
        while not first.is_closed():
            try:
                await first.fetch("select site from bi.sites")
            except DATABASE_AWAY:
                break
    with pytest.raises(asyncpg.InvalidPasswordError):
        await tool.connect(name)
    with pytest.raises(NotFoundError):
        await bi.run(["remove", name])
    with pytest.raises(NotFoundError):
        await bi.run(["remove", "vestibule_owner"])
    with pytest.raises(NotFoundError):
        await bi.run(["add", "nobody"])


async def test_every_view_and_column_says_what_it_is_and_definitions_are_the_apis(
    world: World, tool: Tool
) -> None:
    await world.organisation("own")
    login = await tool.of("own")
    silent = await login.fetch(
        "select c.relname, a.attname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "join pg_attribute a on a.attrelid = c.oid and a.attnum >= 0 and not a.attisdropped "
        "where n.nspname = 'bi' and (col_description(c.oid, a.attnum) is null "
        "or obj_description(c.oid, 'pg_class') is null)"
    )
    assert [tuple(row) for row in silent] == []
    open_ones: list[Any] = await login.fetch(
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = 'bi' and c.relname <> 'definitions' "
        "and not 'security_barrier=true' = any(coalesce(c.reloptions, '{}'))"
    )
    assert open_ones == []
    found = {row["id"]: row for row in await login.fetch("select * from bi.definitions")}
    assert set(found) - set(REGISTRY) == {"coverage.v1"}
    for key, definition in REGISTRY.items():
        assert (found[key]["unit"], found[key]["formula"]) == (definition.unit, definition.formula)


def test_what_proves_a_password_does_not_hold_it_and_differs_by_salt() -> None:
    password = secrets.token_urlsafe(24)
    one, other = (bi.verifier(password, salt=bytes([n]) * 16) for n in (1, 2))
    assert one != other
    assert password not in one
