"""What an operator sees and does: incidents, devices by search, live, one device's timeline."""

import asyncio
import json
import re
from dataclasses import dataclass
from datetime import timedelta

import pytest
from aiohttp import ClientResponse, ClientSession

from server.health.ranking import ranked
from server.people.roles import MAY, Grant, Permission, Role
from tests.integration.people_world import HTML, NOW, People, form_of, load, post

pytestmark = pytest.mark.services
OWN = "/console/o/own"


@dataclass
class Fleet:
    """Three devices of one site, and an operator."""

    people: People
    browser: ClientSession
    organisation: int
    site: int
    devices: dict[str, int]

    async def get(self, path: str) -> str:
        status, text = await load(self.browser, f"{OWN}{path}")
        assert status == 200, (path, text[-400:])
        return text

    async def post(self, path: str, **form: str) -> tuple[int, str]:
        """Send a form; return status and text, or where it leads."""
        csrf = (await form_of(self.browser, OWN))["csrf"]
        response = await post(self.browser, f"{OWN}{path}", {"csrf": csrf, **form})
        if response.status == 303:
            return 303, response.headers["Location"]
        return response.status, await response.text()

    async def incident(
        self,
        ref: str,
        condition: str,
        device: str,
        *,
        stake: float,
        severity: str = "major",
        hours: int = 1,
    ) -> int:
        """An open incident of one device, with its episode; it has been so for `hours`."""
        row: int = await self.people.owner.fetchval(
            "insert into incidents (organisation_id, ref, key, subject, subject_id, condition, "
            "severity, site_id, device_id, since, opened_at, ready_at, stake) values ($1, $2, $2, "
            "'device', $3, $4, $5, $6, $3, $7, $7, $7, $8) returning id",
            *(self.organisation, ref, self.devices[device], condition, severity, self.site),
            *(NOW - timedelta(hours=hours), stake),
        )
        await self.people.owner.execute(
            "insert into episodes (organisation_id, incident_id, subject, subject_id, condition, "
            "site_id, device_id, since, opened_at, evidence) values ($1, $2, 'device', $3, $4, $5, "
            "$3, $6, $6, '{\"silent_s\": 3600}')",
            *(self.organisation, row, self.devices[device], condition, self.site),
            NOW - timedelta(hours=1),
        )
        return row


@pytest.fixture
async def fleet(people: People) -> Fleet:
    own, owner = people.organisations["own"], people.owner
    site = await owner.fetchval("select id from sites where ref = 'own-site'")
    devices = {}
    for number, name in enumerate(("dc-one1-x", "dc-two2-x", "fk-thr3-x")):
        kind = "kiosk" if name.startswith("fk") else "counter"
        row = devices[name] = await owner.fetchval(
            "insert into devices (organisation_id, device, kind, model, serial, state) values "
            "($1, $2, $3, $4, $2, 'in service') returning id",
            *(own, name, kind, "FK1" if kind == "kiosk" else "DC2"),
        )
        spot = await owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, $3, $4, $5) returning id",
            *(own, site, f"spot-{number}", f"Entré {number}", kind),
        )
        await owner.execute(
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "values ($1, $2, $3, tstzrange($4, null))",
            *(own, row, spot, NOW - timedelta(days=30)),
        )
        await owner.execute(
            "update presences set state = $2, session = 'open', session_at = $3, since = $3, "
            "heartbeat_at = $4, agent = $5 where device_id = $1",
            *(row, "offline" if number == 0 else "healthy", NOW - timedelta(hours=3)),
            *(NOW - timedelta(hours=1), f"vestibule 2.{number + 3}"),
        )
    await people.user("noc@example.com", Grant(Role.NOC, own))
    return Fleet(people, await people.signed_in("noc@example.com"), own, site, devices)


async def test_of_what_costs_nobody_today_the_worst_stands_first_then_the_oldest(
    fleet: Fleet,
) -> None:
    await fleet.incident("incident-a", "storage", "dc-one1-x", stake=0, hours=2)
    await fleet.incident("incident-b", "no_data", "dc-two2-x", stake=0, hours=30)
    await fleet.incident("incident-c", "offline", "fk-thr3-x", stake=0, severity="critical")
    html = await fleet.get("/now")
    listed = re.findall(r"/incidents/(incident-\w)", html)
    assert listed == ["incident-c", "incident-b", "incident-a"]
    api = await ranked(fleet.people.owner, fleet.organisation, now=NOW)
    assert [each.ref for each in api] == listed  # one order, wherever it is looked at


async def test_what_needs_a_human_is_ranked_by_what_is_at_stake(fleet: Fleet) -> None:
    html = await fleet.get("/now")
    assert "Nothing needs a human" in html
    await fleet.incident("incident-b", "storage", "dc-two2-x", stake=0, severity="minor")
    await fleet.incident("incident-c", "no_data", "fk-thr3-x", stake=12)
    await fleet.incident("incident-a", "offline", "dc-one1-x", stake=340, severity="critical")
    html = await fleet.get("/now")
    assert re.findall(r"/incidents/(incident-\w)", html) == [
        "incident-a",
        "incident-c",
        "incident-b",
    ]
    assert "About 340 visits at stake today" in html
    assert "It lost power or its network" in html  # the cause
    assert "Check power and network cable" in html  # the remedy
    assert 'href="/console/o/own/devices?q=state%20%3D%20%22offline%22">1<' in html
    for path in ("/incidents", "/incidents/incident-a", "/devices/dc-one1-x", "/sites/own-site"):
        for language in ("en", "sv"):
            cookies = {"language": language}
            async with fleet.browser.get(OWN + path, headers=HTML, cookies=cookies) as response:
                assert response.status == 200, path
                assert "incident-a" in await response.text(), path


async def test_the_search_box_takes_words_and_filters(fleet: Fleet) -> None:
    for asked, expected in {
        "": ["dc-one1-x", "dc-two2-x", "fk-thr3-x"],
        "ONE1": ["dc-one1-x"],
        "own-site entré": ["dc-one1-x", "dc-two2-x", "fk-thr3-x"],
        "firmware < 2.4": ["dc-one1-x"],
        "model = DC2 and not state = offline": ["dc-two2-x"],
    }.items():
        async with fleet.browser.get(
            f"{OWN}/devices", params={"q": asked}, headers={**HTML, "HX-Request": "true"}
        ) as response:
            html = await response.text()
        assert re.findall(r'<th scope="row"><a href="[^"]*/devices/([^"]+)"', html) == expected
        assert f"Devices: {len(expected)}" in html
    async with fleet.browser.get(f"{OWN}/devices", params={"q": "modl = a"}, headers=HTML) as page:
        html = await page.text()
    assert "character 1: no field `modl`" in html.replace("&#39;", "'")


async def test_an_incident_is_seen_to_commented_and_says_who_did_what(fleet: Fleet) -> None:
    await fleet.incident("incident-a", "offline", "dc-one1-x", stake=340, severity="critical")
    page = "/incidents/incident-a"
    assert (await fleet.post(page, do="acknowledge", hours="4"))[0] == 303
    assert (await fleet.post(page, do="comment", words="Ringde butiken: strömavbrott"))[0] == 303
    html = await fleet.get(page)
    assert "Ada</strong> acknowledged it" in html
    assert "until 2026-04-02 16:00 UTC" in html
    assert "Ringde butiken: strömavbrott" in html
    assert "Ada has it" in html
    status, html = await fleet.post(page, do="comment", words="")
    assert (status, "expected 1 to" in html) == (422, True)
    assert (await fleet.post(page, do="leave"))[0] == 303
    assert "has it" not in await fleet.get("/now")
    assert (await fleet.post("/incidents/incident-x", do="take"))[0] == 404
    assert (await fleet.post(page, do="burn"))[0] == 404
    await fleet.people.owner.execute("update incidents set state = 'resolved', ended_at = now()")
    status, html = await fleet.post(page, do="take")
    assert (status, "incident-a is over" in html) == (422, True)
    assert "/incidents/incident-a" in await fleet.get("/incidents?over=1")


async def test_one_timeline_tells_what_happened_whoever_wrote_it_down(fleet: Fleet) -> None:
    owner, row = fleet.people.owner, fleet.devices["dc-one1-x"]
    await fleet.incident("incident-a", "offline", "dc-one1-x", stake=1)
    await owner.executemany(
        "insert into device_events (organisation_id, device_id, at, kind, state, reason, detail) "
        "values ($1, $2, $3, $4, $5, $6, $7)",
        [
            (fleet.organisation, row, NOW - timedelta(hours=3), "connected", "", "", "{}"),
            (fleet.organisation, row, NOW - timedelta(hours=3), "version", "", "",
             json.dumps({"from": "vestibule 2.2", "to": "vestibule 2.3"})),
            (fleet.organisation, row, NOW - timedelta(hours=2), "lost", "", "", "{}"),
            (fleet.organisation, row, NOW - timedelta(hours=2), "state", "offline", "", "{}"),
        ],
    )  # fmt: skip
    await owner.execute(
        "insert into boots (id, device_id, boot_id, ordinal) overriding system value "
        "values (1, $1, 1, 1)",
        row,
    )
    await owner.execute(
        "insert into gaps (organisation_id, device_id, spot_id, boot, from_seq, to_seq, from_at, "
        "until_at, reason, counts) select $1, $2, spot_id, 1, 0, 1, $3, $3, 'thinned', '{}' "
        "from assignments where device_id = $2",
        *(fleet.organisation, row, NOW - timedelta(minutes=90)),
    )
    html = await fleet.get("/devices/dc-one1-x")
    line = html[html.index('id="line-title"') : html.index('id="metrics-title"')]
    told = re.findall(r'<span class="kind">(\w[\w ]*)</span> (\w+)', line)
    assert told == [
        ("Episode", "opened"),
        ("Counts", "counts"),
        ("Session", "connection"),
        ("Session", "state"),
        ("Session", "connected"),
        ("Version", "Version"),
        ("Place and visit", "placed"),
    ]
    only = await fleet.get("/devices/dc-one1-x?kind=counts")
    assert "connection broke" not in only
    assert "It is connected since 2026-04-02 09:00 UTC" in html


async def test_a_bulk_action_is_looked_at_and_done_to_what_was_shown(fleet: Fleet) -> None:
    html = await fleet.get("/bulk?q=kind%20%3D%20counter&do=identify")
    assert "Devices: 2" in html
    seen = re.findall(r'name="shown" value="(\w+)"', html)[0]
    form = {"q": "kind = counter", "do": "identify"}
    status, html = await fleet.post("/bulk", **form, shown="other")
    assert (status, "the search finds other devices by now" in html) == (422, True)
    status, where = await fleet.post("/bulk", **form, shown=seen)
    assert (status, where.split("=")[0]) == (303, f"{OWN}/devices?done")
    asked = await fleet.people.owner.fetch(
        "select d.device, b.kind from commands c join devices d on d.id = c.device_id "
        "join command_batches b on b.id = c.batch_id order by 1"
    )
    assert [tuple(row) for row in asked] == [("dc-one1-x", "identify"), ("dc-two2-x", "identify")]
    silence = {"q": "kind = counter", "do": "silence", "shown": seen, "hours": "4"}
    status, html = await fleet.post("/bulk", **silence)
    assert (status, "say why" in html) == (422, True)
    assert (await fleet.post("/bulk", **silence, reason="stocktaking"))[0] == 303
    windows = await fleet.people.owner.fetch("select reason, ends_at from health_windows")
    assert [tuple(row) for row in windows] == [("stocktaking", NOW + timedelta(hours=4))] * 2
    assert "Devices: 2" in await fleet.get("/devices?q=kind%20%3D%20counter")


async def test_who_may_not_command_a_device_may_not_command_many(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAY, Role.NOC, MAY[Role.NOC] - {Permission.COMMAND_DEVICES})
    silence = await fleet.get("/bulk?q=kind%20%3D%20counter&do=silence")
    seen = re.findall(r'name="shown" value="(\w+)"', silence)[0]
    for do in ("identify", "reboot", "self-test"):
        status, _ = await fleet.post("/bulk", q="kind = counter", do=do, shown=seen)
        assert status == 422
    assert await fleet.people.owner.fetchval("select count(*) from commands") == 0


async def test_a_search_is_kept_as_what_it_is_said_to_be(fleet: Fleet) -> None:
    kept = {"q": "ONE1", "name": "The first", "follows": "snapshot"}
    assert (await fleet.post("/segments", **kept))[0] == 303
    html = await fleet.get("/devices")
    assert "The first" in html
    assert "1 as of 2026-04-02" in html
    status, html = await fleet.post("/segments", **kept)
    assert (status, "already" in html) == (422, True)
    ref = await fleet.people.owner.fetchval("select ref from segments")
    await fleet.people.owner.execute("update devices set serial = 'x' where device = 'dc-one1-x'")
    await fleet.people.owner.execute("update devices set model = 'ONE1' where device = 'dc-two2-x'")
    assert "/devices/dc-one1-x" in await fleet.get(f"/devices?segment={ref}")  # as it was
    assert "Devices: 1" in await fleet.get(f"/bulk?segment={ref}&do=identify")
    assert "Devices: 2" in await fleet.get("/devices?q=ONE1")
    assert (await load(fleet.browser, f"{OWN}/devices?segment=segment-none2345"))[0] == 404
    assert (await fleet.post("/segments", do="forget", segment=ref))[0] == 303


async def events(response: ClientResponse, count: int) -> list[bytes]:
    return [await response.content.readuntil(b"\n\n") for _ in range(count)]


async def test_a_live_page_misses_nothing_between_connections(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.console.live.LOOK_S", 0.01)
    shown = re.findall(r'data-after="(\w+)"', await fleet.get("/now"))[0]
    await fleet.incident("incident-a", "offline", "dc-one1-x", stake=340)  # before the stream
    async with fleet.browser.get(f"{OWN}/events?after={shown}", headers=HTML) as response:
        first, second = await events(response, 2)
    last = re.findall(rb"id: (\w+)\nevent: changed", first)[0].decode()
    assert (last != shown, second) == (True, b": alive\n\n")
    headers = {**HTML, "Last-Event-ID": last}
    async with fleet.browser.get(f"{OWN}/events?after={shown}", headers=headers) as response:
        assert await events(response, 2) == [b": alive\n\n"] * 2  # it has seen all there is
    await fleet.people.owner.execute("update presences set state = 'offline', since = now()")
    async with fleet.browser.get(f"{OWN}/events?after={shown}", headers=headers) as response:
        assert (await events(response, 1))[0].startswith(b"id: ")
        await fleet.people.owner.execute("update sessions set ended_at = now()")
        async with asyncio.timeout(5):
            while not response.content.at_eof():
                await response.content.readany()


async def test_live_pages_of_another_organisation_are_not_there(fleet: Fleet) -> None:
    for path in ("events", "now", "incidents"):
        async with fleet.browser.get(f"/console/o/other/{path}", headers=HTML) as response:
            assert response.status == 404, path
