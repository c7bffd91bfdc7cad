"""Files of the register: dry runs, errors by row, and an export that imports to the same."""

import random
from datetime import date
from typing import Any

import asyncpg
import pytest

from server.audit.log import holding, verify
from server.db.engine import acting
from server.fleet import doors, exchange, hours, sites, spots, table
from server.fleet.doors import Door
from server.fleet.exchange import Outcome
from server.fleet.hours import Opening, OwnDay
from server.fleet.sites import Site
from server.fleet.spots import Spot
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services
FILE = (
    "site,region,time_zone,hours,door,behind,spot,kind,purpose,height_cm\n"
    "A,North,Europe/Stockholm,Mo-Fr 10:00-19:00; Sa 10:00-17:00; Su off,"
    "Inner,Outer,A inner,counter,passage,310\n"
    "A,North,Europe/Stockholm,Mo-Fr 10:00-19:00; Sa 10:00-17:00; Su off,"
    "Outer,,A outer,counter,entrance,\n"
    "A,North,Europe/Stockholm,Mo-Fr 10:00-19:00; Sa 10:00-17:00; Su off,,,Till,kiosk,checkout,\n"
    "'=B,North,Europe/Oslo,,,,,,,\n"
)


async def take(
    connection: asyncpg.Connection, organisation: int, text: str | bytes, *, dry_run: bool = False
) -> Outcome:
    data = text.encode() if isinstance(text, str) else text
    return await exchange.take_in(
        connection, organisation, data, actor="command", now=NOW, dry_run=dry_run
    )


async def test_a_dry_run_says_what_would_happen_and_keeps_nothing(people: People) -> None:
    own = people.organisations["own"]
    before = await people.owner.fetchval("select count(*) from audit")
    async with acting(people.desk, "dry", organisation=own) as connection:
        planned = await take(connection, own, FILE, dry_run=True)
    assert await people.owner.fetchval("select count(*) from audit") == before
    assert await people.owner.fetchval("select count(*) from sites") == 2
    async with acting(people.desk, "real", organisation=own) as connection:
        done = await take(connection, own, FILE)
    assert planned.errors == done.errors == []
    acts = [(deed.line, deed.act, deed.name) for deed in done.deeds]
    assert acts == [(deed.line, deed.act, deed.name) for deed in planned.deeds]
    assert acts == [
        (2, "region added", "North"),
        (2, "site added", "A"),
        (2, "door added", "Inner"),
        (2, "spot added", "A inner"),
        (3, "door added", "Outer"),
        (3, "spot added", "A outer"),
        (4, "spot added", "Till"),
        (5, "site added", "=B"),
        (2, "door changed", "Inner"),
    ]
    async with acting(people.desk, "again", organisation=own) as connection:
        assert (await take(connection, own, FILE)).deeds == []


async def test_each_bad_row_is_reported_and_then_nothing_is_kept(people: People) -> None:
    own, other = people.organisations["own"], people.organisations["other"]
    theirs = await doors.add(people.owner, other, "other-site", Door("T"), actor="x", now=NOW)
    lines = [
        "site_ref,site,time_zone,currency,hours,opens_on,door_ref,door,behind,spot,kind,height_cm",
        ",Fine,Europe/Oslo,,,,,,,,,",
        ",A,Europe/Atlantis,,,,,,,,,",
        ",B,Europe/Oslo,XXQ,,,,,,,,",
        ",C,Europe/Oslo,,PH off,,,,,,,",
        ",D,Europe/Oslo,,,24.12.2026,,,,,,",
        ",E,Europe/Oslo,,,,,E1,E2,,,",
        ",E,Europe/Oslo,,,,,E2,E1,,,",
        ",F,Europe/Oslo,,,,,,,F1,door,",
        ",G,Europe/Oslo,,,,,,,G1,counter,high",
        ",Fine,Europe/Paris,,,,,,,,,",
        "other-site,,,,,,,,,,,",
        "no-site,,,,,,,,,,,",
        f",H,Europe/Oslo,,,,{theirs.ref},,,,,",
        ",H,Europe/Oslo,,,,door-nothing1,,,,,",
    ]
    async with acting(people.desk, "bad", organisation=own) as connection:
        found = await take(connection, own, "\n".join(lines))
    assert {(error.line, error.column) for error in found.errors} == {
        (3, "time_zone"),
        (4, "currency"),
        (5, "hours"),
        (6, "opens_on"),
        (8, "behind"),
        (9, "kind"),
        (10, "height_cm"),
        (11, "site"),
        (12, "site_ref"),
        (13, "site_ref"),
        (14, "door_ref"),
        (15, "door_ref"),
    }
    whys = {error.line: error.why for error in found.errors}
    assert whys[12].replace("other-site", "X") == whys[13].replace("no-site", "X")
    assert whys[14].replace(theirs.ref, "X") == whys[15].replace("door-nothing1", "X")
    assert await people.owner.fetchval("select count(*) from sites") == 2


async def test_an_export_imports_to_the_same(people: People) -> None:
    own, other = people.organisations["own"], people.organisations["other"]
    rng = random.Random(7)
    async with acting(people.desk, "fill", organisation=own) as connection:
        for number in range(12):
            await some_site(connection, own, number, rng)
        whole = await exchange.give_out(connection, own, now=NOW)
        same = await take(connection, own, whole)
        assert same.errors == []
        assert same.deeds == []
        elsewhere = await exchange.give_out(connection, own, now=NOW, refs=False)
    await people.owner.execute("delete from sites where organisation_id = $1", other)
    async with acting(people.desk, "elsewhere", organisation=other) as connection:
        made = await take(connection, other, elsewhere)
        assert made.errors == []
        again = await exchange.give_out(connection, other, now=NOW, refs=False)
    assert sorted(again.splitlines()) == sorted(elsewhere.splitlines())
    assert not any(
        cell.startswith(("=", "+", "-", "@"))
        for line in whole.decode("utf-8-sig").splitlines()
        for cell in line.split(",")
    )


NAMES = ("=1+1", "+46", "-x", "@home", "'quoted", 'a "b"', "c;d", "e,f", "Åre", "g")


async def some_site(
    connection: asyncpg.Connection, organisation: int, number: int, rng: random.Random
) -> None:
    """Add a site with anything that a site may have."""

    def name() -> str:
        return f"{rng.choice(NAMES)} {number}.{rng.randrange(10**6)}"

    week = tuple(
        tuple(sorted({(low, low + rng.choice((60, 1440))) for low in rng.sample((0, 1439), 1)}))
        for _ in range(7)
    )
    own_days = (OwnDay(date(2026, 12, 24), ((600, 840), (900, 2000)), "=note"),)
    site = await sites.add(
        connection,
        organisation,
        Site(
            name(),
            rng.choice(("Europe/Oslo", "America/St_Johns")),
            "SEK",
            rng.choice(NAMES),
            opens_on=rng.choice((None, date(2026, 1, 1))),
            closes_on=rng.choice((None, date(2027, 1, 1))),
            opening=hours.checked(rng.choice((Opening(week, own_days), Opening()))),
        ),
        actor="x",
        now=NOW,
    )
    behind: list[str | None] = [None]
    for _ in range(rng.randrange(4)):
        door = Door(name(), rng.choice(behind))
        made = await doors.add(connection, organisation, site.ref, door, actor="x", now=NOW)
        behind.append(made.ref)
    for _ in range(rng.randrange(3)):
        spot = Spot(
            name(),
            rng.choice(spots.KINDS),
            rng.choice(behind),
            rng.choice(spots.PURPOSES),
            rng.choice((None, 250)),
        )
        await spots.add(connection, organisation, site.ref, spot, actor="x", now=NOW)


async def test_a_file_in_latin_1_is_refused(people: People) -> None:
    with pytest.raises(Exception, match="not UTF-8"):
        await take(people.owner, people.organisations["own"], "site\nCafé".encode("latin-1"))
    assert table.read("site\nCafé".encode(), most_rows=1)[0].get("site") == "Café"


async def test_a_dry_run_waits_for_nobodys_audit(people: People) -> None:
    own = people.organisations["own"]
    async with people.owner.transaction():
        await people.owner.execute(f"select {holding('$1')}", own)
        async with acting(people.desk, "dry", organisation=own) as connection:
            await connection.execute("set local lock_timeout = '5s'")
            assert (await take(connection, own, FILE, dry_run=True)).errors == []


async def test_an_import_takes_the_audits_chain_when_all_else_is_done(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = people.organisations["own"]
    held: list[int] = []
    add = spots.add

    async def watched(connection: asyncpg.Connection, *told: Any, **more: Any) -> Any:
        done = await add(connection, *told, **more)
        held.append(
            await connection.fetchval(
                "select count(*) from pg_locks where locktype = 'advisory' "
                "and pid = pg_backend_pid()"
            )
        )
        return done

    monkeypatch.setattr(spots, "add", watched)
    async with acting(people.desk, "real", organisation=own) as connection:
        done = await take(connection, own, FILE)
    assert held == [0, 0, 0]
    acts = await people.owner.fetch("select act, subject from audit where chain = $1", own)
    assert [(deed.act, deed.ref) for deed in done.deeds] == [tuple(row) for row in acts]
    assert (await verify(people.owner))[1] == []
