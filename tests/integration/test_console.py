"""The console through the real pages and database."""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import timedelta
from html import unescape
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode

import pytest
from aiohttp import ClientSession, FormData

from server.console.pages import CATALOGUES, HERE, LANGUAGES
from server.db.engine import acting, overseeing
from server.fleet import doors, organisations, sites, spots
from server.fleet.doors import Door
from server.fleet.lifecycle import State
from server.fleet.spots import Spot
from server.people import users
from server.people.roles import Grant, Role
from server.web import catalogue
from tests.integration.people_world import GOOD, HTML, NOW, People, form_of, load, post

pytestmark = pytest.mark.services
OWN = "/console/o/own"


@dataclass
class Shop:
    """What the own organisation's site has, and somebody who administers it."""

    people: People
    browser: ClientSession
    door: str
    spot: str
    device: str

    async def post(self, path: str, **form: str) -> tuple[int, str]:
        """Send a form as the page of `path` would; return status and text, or where it leads."""
        csrf = (await form_of(self.browser, OWN))["csrf"]
        response = await post(self.browser, path, {"csrf": csrf, **form})
        if response.status == 303:
            return 303, response.headers["Location"]
        return response.status, await response.text()


@pytest.fixture
async def shop(people: People) -> Shop:
    own = people.organisations["own"]
    by = {"actor": "command", "now": NOW}
    async with acting(people.desk, "fill", organisation=own) as connection:
        door = await doors.add(connection, own, "own-site", Door("Front"), **by)  # type: ignore[arg-type]
        spot = await spots.add(connection, own, "own-site", Spot("Above", "counter"), **by)  # type: ignore[arg-type]
    device = "dc-7k2m9qxw4fpn"
    await people.owner.execute(
        "insert into devices (organisation_id, device, kind, serial, state) "
        "values ($1, $2, 'counter', 'DC-1', 'in service')",
        *(own, device),
    )
    await people.user("boss@example.com", Grant(Role.ADMINISTRATOR, own))
    browser = await people.signed_in("boss@example.com")
    return Shop(people, browser, door.ref, spot.ref, device)


def version(html: str, action: str) -> str:
    """Return the version that the form to `action` would send."""
    form = html[html.index(f'action="{action}"') :]
    found = re.search(r'name="version" value="([0-9a-f]*)"', form)
    assert found is not None
    return found[1]


def test_the_catalogues_are_complete() -> None:
    loaded = catalogue.load([catalogue.SHARED, *CATALOGUES], LANGUAGES)
    assert catalogue.problems(loaded) == []
    used = set()
    for template in (HERE / "templates").glob("*.html"):
        used |= set(re.findall(r"\bt\('(\w+)'[,)]", template.read_text()))
    assert used <= set(loaded["en"].texts)
    for state in State:
        for kind in ("state", "to"):
            assert f"{kind}_{state.replace(' ', '_')}" in loaded["en"].texts


async def test_every_page_can_be_read_in_both_languages(shop: Shop) -> None:
    paths = [
        "/console",
        OWN,
        f"{OWN}?q=own",
        f"{OWN}/sites",
        f"{OWN}/sites/own-site",
        f"{OWN}/devices",
        f"{OWN}/devices/{shop.device}",
        f"{OWN}/rollouts",
        f"{OWN}/rollouts/new",
        f"{OWN}/rollouts/releases",
        f"{OWN}/rollouts/freezes",
        f"{OWN}/people",
        f"{OWN}/audit",
        f"{OWN}/audit?verify=1",
        f"{OWN}/import",
    ]
    for language, word in (("en", "Account"), ("sv", "Konto"), ("da", "Account")):
        for path in paths:
            cookies = {"language": language}
            async with shop.browser.get(path, headers=HTML, cookies=cookies) as response:
                text = await response.text()
                assert response.status == 200, (path, text[-500:])
                assert word in text, path
    for path in ("/console/unknown", "/console/people", "/console/audit", "/console/o/other"):
        assert (await load(shop.browser, path))[0] == 404, path


async def test_a_site_is_edited_and_the_second_operator_is_told(shop: Shop) -> None:
    page = f"{OWN}/sites/own-site"
    _, html = await load(shop.browser, page)
    seen = version(html, page)
    form = {
        "name": "Own shop",
        "time_zone": "Europe/Stockholm",
        "currency": "SEK",
        "hours": "Mo-Fr 10:00-19:00; 2026-12-25 off",
        "version": seen,
    }
    assert await shop.post(page, **form) == (303, page)
    _, html = await load(shop.browser, page)
    assert "Monday–Friday" in html
    assert "10:00–19:00" in html
    status, html = await shop.post(page, **{**form, "address": "Storgatan 1", "name": "Mine"})
    assert status == 409
    assert "Somebody else was quicker" in html
    assert "<ins>Own shop</ins>" in html
    assert "Storgatan 1" in html
    assert (await shop.post(page, **{**form, "version": version(html, page)})) == (303, page)
    status, html = await shop.post(
        page, **{**form, "hours": "PH off", "version": version(html, page)}
    )
    assert status == 422
    assert "PH" in html


async def test_sites_doors_and_spots_are_added_and_changed(shop: Shop) -> None:
    assert (await shop.post(f"{OWN}/regions", name="North"))[0] == 303
    region = await shop.people.owner.fetchval("select ref from regions")
    status, page = await shop.post(
        f"{OWN}/sites", name="B", time_zone="Europe/Oslo", currency="NOK", region=region, hours=""
    )
    assert status == 303
    assert (await shop.post(f"{page}/doors", name="Outer"))[0] == 303
    outer = await shop.people.owner.fetchval("select ref from doors where name = 'Outer'")
    assert (await shop.post(f"{page}/doors", name="Inner", behind=outer))[0] == 303
    _, html = await load(shop.browser, page)
    assert "Behind Outer" in html
    assert (await shop.post(f"{page}/doors/{outer}", name="Outer", behind=outer))[0] == 409
    kind = {"kind": "counter", "purpose": "entrance", "door": outer, "height_cm": "300"}
    assert (await shop.post(f"{page}/spots", name="Spot", **kind))[0] == 303
    spot = await shop.people.owner.fetchval("select ref from spots where name = 'Spot'")
    _, html = await load(shop.browser, page)
    seen = version(html, f"{page}/spots/{spot}")
    kind["height_cm"] = "320"
    assert (await shop.post(f"{page}/spots/{spot}", name="Spot", version=seen, **kind))[0] == 303
    calibration = {"line": "0", "factor": "1,05", "reversed": "yes", "reason": "turned"}
    assert (await shop.post(f"{page}/spots/{spot}/calibrate", **calibration))[0] == 303
    status, html = await shop.post(f"{page}/spots/{spot}/calibrate", line="9", reason="x")
    assert status == 422
    other = f"{OWN}/sites/own-site/spots/{spot}"  # of another site
    assert (await shop.post(other, name="Spot", version=seen, **kind))[0] == 404


async def test_a_device_takes_its_steps_with_a_reason_and_moves(shop: Shop) -> None:
    page, owner = f"{OWN}/devices/{shop.device}", shop.people.owner
    _, html = await load(shop.browser, page)
    buttons = re.findall(r'name="to" value="([^"]+)"', html)
    assert buttons == ["suspended", "quarantined", "returned", "retired"]
    state = {"to": "suspended", "seen": "in service"}
    status, html = await shop.post(f"{page}/state", **state)
    assert (status, "say why" in html) == (422, True)
    assert (await shop.post(f"{page}/state", **state, reason="smoke"))[0] == 303
    assert await owner.fetchval("select state from devices where serial = 'DC-1'") == "suspended"
    _, html = await load(shop.browser, page)
    assert "smoke" in html
    assert re.findall(r'name="to" value="([^"]+)"', html)[0] == "in service"
    status, html = await shop.post(f"{page}/state", to="retired", seen="in service", reason="x")
    assert status == 422  # it is another state by now
    assert (await shop.post(f"{page}/state", to="no state"))[0] == 404
    status, html = await shop.post(f"{page}/spot", spot=shop.spot)
    assert (status, "blocked" in html) == (422, True)
    back = {"to": "in service", "seen": "suspended", "reason": "no smoke"}
    assert (await shop.post(f"{page}/state", **back))[0] == 303
    assert (await shop.post(f"{page}/spot", spot=shop.spot))[0] == 303
    act = "select detail::text from audit where act = 'device assigned'"
    assert json.loads(await owner.fetchval(act))["spot"] == shop.spot
    assert (await shop.post(f"{page}/spot", spot="spot-nothing1"))[0] == 422
    assert (await shop.post(f"{page}/spot", spot=shop.spot))[0] == 303  # it stands there
    assert await owner.fetchval("select count(*) from assignments") == 1


@pytest.mark.parametrize("state", ["suspended", "quarantined", "returned", "retired"])
async def test_a_device_that_is_out_takes_no_spot(shop: Shop, state: str) -> None:
    page, owner = f"{OWN}/devices/{shop.device}", shop.people.owner
    await owner.execute("update devices set state = $1", state)
    assert shop.spot not in (await load(shop.browser, page))[1]
    assert (await shop.post(f"{page}/spot", spot=shop.spot))[0] == 422
    assert await owner.fetchval("select count(*) from assignments") == 0


async def test_a_move_is_not_noted_long_after(shop: Shop) -> None:
    page = f"{OWN}/devices/{shop.device}"
    long_ago = f"{NOW - timedelta(days=8):%Y-%m-%dT%H:%M}"
    for since in ("0001-01-01T00:00", "0001-01-01T00:00+14:00", long_ago, "yesterday"):
        assert (await shop.post(f"{page}/spot", spot=shop.spot, since=since))[0] == 422, since
    since = f"{NOW - timedelta(days=6):%Y-%m-%dT%H:%M}"
    assert (await shop.post(f"{page}/spot", spot=shop.spot, since=since))[0] == 303


async def test_a_spot_that_is_taken_is_neither_offered_nor_given(shop: Shop) -> None:
    page, owner = f"{OWN}/devices/{shop.device}", shop.people.owner
    assert f'<option value="{shop.spot}"' in (await load(shop.browser, page))[1]
    await owner.execute(
        "with d as (insert into devices (organisation_id, device, kind, serial, state) "
        "values ($1, 'dc-9k2m9qxw4fpn', 'counter', 'DC-2', 'in service') returning id) "
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "select $1, d.id, s.id, tstzrange($3, null) from d, spots s where s.ref = $2",
        *(shop.people.organisations["own"], shop.spot, NOW - timedelta(days=1)),
    )
    assert f'<option value="{shop.spot}"' not in (await load(shop.browser, page))[1]
    status, html = await shop.post(f"{page}/spot", spot=shop.spot)
    assert (status, "stands at this spot already" in html) == (422, True)


@pytest.mark.parametrize(("enrolled", "state"), [(True, "installed"), (False, "claimed")])
async def test_a_device_that_is_given_a_spot_moves_on_in_its_life(
    shop: Shop, enrolled: bool, state: str
) -> None:
    owner = shop.people.owner
    await owner.execute("update devices set state = 'manufactured'")
    if enrolled:
        await owner.execute(
            "insert into certificates (serial, organisation_id, device_id, spki_sha256, state) "
            "select 'ab12', organisation_id, id, sha256('key'), 'active' from devices"
        )
    page = f"{OWN}/devices/{shop.device}"
    assert (await shop.post(f"{page}/spot", spot=shop.spot))[0] == 303
    assert await owner.fetchval("select state from devices") == state


async def test_people_are_invited_and_shut_out_within_the_organisation_alone(shop: Shop) -> None:
    own, other = (shop.people.organisations[name] for name in ("own", "other"))
    page = f"{OWN}/people"
    status, html = await shop.post(page, email="eva@example.com", role="analyst", language="sv")
    assert status == 200
    link = unescape(re.search(r'<pre id="link"[^>]*>([^<]+)<', html)[1])  # type: ignore[index]
    assert "/invitation?token=" in link
    assert link not in (await load(shop.browser, page))[1]
    eva = await shop.people.owner.fetchrow("select id, ref from users where email like 'eva%'")
    assert (
        await shop.post(f"{page}/{eva['ref']}/grant", role="technician", scope="site:own-site")
    )[0] == 303
    assert (await shop.post(f"{page}/{eva['ref']}/grant", role="noc", scope="site:other-site"))[
        0
    ] == 422
    assert (
        await shop.post(f"{page}/{eva['ref']}/revoke", role="technician", scope="site:own-site")
    )[0] == 303
    rows = await shop.people.owner.fetch("select role from grants where user_id = $1", eva["id"])
    assert [row["role"] for row in rows] == ["analyst"]
    both = await shop.people.user("both@example.com", Grant(Role.NOC, own), Grant(Role.NOC, other))
    theirs = await shop.people.user("theirs@example.com", Grant(Role.NOC, other))
    refs = dict(await shop.people.owner.fetch("select id, ref from users"))
    assert (await shop.post(f"{page}/{refs[both]}/disable"))[0] == 422
    for act in ("link", "disable"):
        assert (await shop.post(f"{page}/{refs[theirs]}/{act}"))[0] == 404
    assert (await shop.post(f"{page}/{eva['ref']}/disable"))[0] == 422  # nobody has come yet
    await shop.people.owner.execute("update users set password_hash = 'x' where id = $1", eva["id"])
    assert (await shop.post(f"{page}/{eva['ref']}/disable"))[0] == 303
    assert await shop.people.owner.fetchval(
        "select disabled_at from users where id = $1", eva["id"]
    )
    mine = await shop.people.owner.fetchval("select ref from users where email like 'boss%'")
    assert (await shop.post(f"{page}/{mine}/disable"))[0] == 422


@pytest.mark.parametrize("organisation", ["own", None])
async def test_users_come_with_their_grants_in_one_query(
    people: People, organisation: str | None
) -> None:
    own = people.organisations["own"]
    eva = await people.user("eva@example.com", Grant(Role.ANALYST, own), Grant(Role.ADMINISTRATOR))
    await people.user("none@example.com")
    asked: list[str] = []
    row = None if organisation is None else people.organisations[organisation]
    async with overseeing(people.desk, "list") as connection:
        with connection.query_logger(lambda query: asked.append(query.query)):
            found = await users.listed_with_grants(connection, organisation=row)
        ref = next(user.ref for user, _ in found if user.id == eva)
        one = await users.listed_with_grants(connection, organisation=row, ref=ref)
        assert [await users.grants_of(connection, user.id) for user, _ in found] == [
            grants for _, grants in found
        ]
        listed = await users.listed(connection)
    assert len(asked) == 1
    assert [user for user, _ in one] == [user for user in listed if user.id == eva]
    known = [user for user in listed if organisation is None or user.id == eva]
    assert [user for user, _ in found] == known


async def test_a_file_is_looked_at_and_then_taken_in(shop: Shop, tmp_path: Path) -> None:
    csrf = (await form_of(shop.browser, OWN))["csrf"]

    async def upload(data: bytes) -> tuple[int, str]:
        form = FormData({"csrf": csrf})
        form.add_field("file", BytesIO(data), filename="x.csv", content_type="text/csv")
        async with shop.browser.post(f"{OWN}/import", data=form, headers=HTML) as response:
            return response.status, await response.text()

    text = "site;time_zone;hours\n'=New <b>;Europe/Oslo;Mo 10:00-19:00\n"
    status, html = await upload(text.encode())
    assert status == 200
    assert "=New &lt;b&gt;" in html
    assert await shop.people.owner.fetchval("select count(*) from sites") == 2
    status, html = await shop.post(f"{OWN}/import", text=text, apply="yes")
    assert status == 200
    assert await shop.people.owner.fetchval("select count(*) from sites") == 3
    status, html = await upload(b"site;time_zone\nX;Europe/Nowhere\n")
    assert (status, "Europe/Nowhere" in html) == (422, True)
    assert (await upload("site\nCafé".encode("latin-1")))[0] == 422
    assert (await upload(b"site\n" + b"x" * 1_200_000))[0] in (413, 422)
    async with shop.browser.get(f"{OWN}/export") as response:
        assert "'=New <b>" in await response.text(encoding="utf-8-sig")


async def test_who_oversees_all_sees_unknown_devices_and_dismisses_them(people: People) -> None:
    await people.user("noc@example.com", Grant(Role.NOC))
    await people.owner.execute("insert into unknown_devices (serial) values ('DC-9')")
    browser = await people.signed_in("noc@example.com")
    assert "DC-9" in (await load(browser, "/console/unknown"))[1]
    form = await form_of(browser, "/console/unknown")
    assert (await post(browser, "/console/unknown/dismiss", form)).status == 303
    assert await people.owner.fetchval("select dismissed_at from unknown_devices")
    assert (
        await people.owner.fetchval("select subject from audit where act like 'unknown%'") == "DC-9"
    )
    for path in ("/console", "/console/audit", "/console/o/own", "/console/o/other/devices"):
        assert (await load(browser, path))[0] == 200, path
    form = await form_of(browser, "/console")
    made = await post(browser, "/console/organisations", {**form, "name": "New chain"})
    assert made.status == 303


async def test_a_grant_for_one_site_opens_that_site_alone(people: People) -> None:
    own = people.organisations["own"]
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'second-site', 'second', 'Europe/Oslo')",
        own,
    )
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    await people.user("store@example.com", Grant(Role.STORE_MANAGER, own, None, site))
    browser = await people.signed_in("store@example.com")
    _, html = await load(browser, OWN)
    assert "own-site" in html
    assert "second" not in html
    assert (await load(browser, f"{OWN}/sites/own-site"))[0] == 200
    for path in ("sites/second-site", "people", "audit", "import", "export", "sites"):
        assert (await load(browser, f"{OWN}/{path}"))[0] == 404, path
    form = {"csrf": (await form_of(browser, "/account"))["csrf"], "name": "x"}
    assert (await post(browser, f"{OWN}/sites/own-site", form)).status == 404
    assert GOOD


PRIVILEGED = {
    "/console/organisations": "organisation added",
    f"{OWN}": "organisation changed",
    f"{OWN}/regions": "region added",
    f"{OWN}/regions/{{region}}": "region changed",
    f"{OWN}/sites": "site added",
    f"{OWN}/sites/own-site": "site changed",
    f"{OWN}/sites/own-site/doors": "door added",
    f"{OWN}/sites/own-site/doors/{{door}}": "door changed",
    f"{OWN}/sites/own-site/spots": "spot added",
    f"{OWN}/sites/own-site/spots/{{spot}}": "spot changed",
    f"{OWN}/sites/own-site/spots/{{spot}}/calibrate": "spot calibrated",
    f"{OWN}/segments": "segment added",
    f"{OWN}/bulk": "command asked",
    f"{OWN}/incidents/{{incident}}": "incident acknowledged",
    f"{OWN}/devices/{{device}}/settings": "settings changed",
    f"{OWN}/devices/{{device}}/commands": "command asked",
    f"{OWN}/devices/{{device}}/commands/{{command}}/cancel": "command cancelled",
    f"{OWN}/rollouts/new": "rollout submitted",
    f"{OWN}/rollouts/{{rollout}}": "rollout approved",
    f"{OWN}/devices/{{device}}/spot": "device assigned",
    f"{OWN}/devices/{{device}}/state": "device suspended",
    f"{OWN}/import": "site added",
    f"{OWN}/people": "role granted",
    f"{OWN}/people/{{user}}/grant": "role granted",
    f"{OWN}/people/{{user}}/revoke": "role revoked",
    f"{OWN}/people/{{user}}/link": "invitation link made",
    f"{OWN}/people/{{user}}/disable": "user disabled",
    f"{OWN}/people/{{user}}/enable": "user enabled",
    f"{OWN}/rollouts/freezes": "freeze added",
    f"{OWN}/rollouts/freezes/{{freeze}}/end": "freeze ended",
    "/console/unknown/dismiss": "unknown device dismissed",
}


ROLLOUT = {"bundle": "bundle-a", "wave1": "rest", "when": "any"}
DOES = {f"{OWN}/incidents/{{incident}}": "acknowledge", f"{OWN}/rollouts/{{rollout}}": "approve"}


async def test_every_form_of_the_console_leaves_its_row_in_the_audit(people: People) -> None:
    own, owner = people.organisations["own"], people.owner
    await people.user("root@example.com", Grant(Role.ADMINISTRATOR))
    eva = await people.user("eva@example.com", Grant(Role.ANALYST, own), password=None)
    await owner.execute("insert into unknown_devices (serial) values ('DC-9')")
    await owner.execute(
        "insert into devices (organisation_id, device, kind, model, state) "
        "values ($1, 'dc-7k2m9qxw4fpn', 'counter', 'DC2', 'in service')",
        own,
    )
    browser = await people.signed_in("root@example.com")
    csrf = (await form_of(browser, "/console"))["csrf"]
    names = {"device": "dc-7k2m9qxw4fpn"}
    names["user"] = await owner.fetchval("select ref from users where id = $1", eva)
    form = {
        "csrf": csrf,
        "time_zone": "Europe/Oslo",
        "currency": "NOK",
        "kind": "counter",
        "purpose": "entrance",
        "line": "0",
        "reason": "why",
        "to": "suspended",
        "seen": "in service",
        "apply": "yes",
        "text": "site,time_zone\nNew,Europe/Oslo\n",
        "email": "x@example.com",
        "role": "technician",
        "serial": "DC-9",
        "enrolment": "technician",
        "clones": "report",
        "follows": "live",
        "do": "identify",
        "health_s": "600",
        "ends_at": "2026-04-13T00:00",
        **ROLLOUT,
        "shown": hashlib.sha256(names["device"].encode()).hexdigest()[:16],
    }
    await owner.execute(
        "insert into incidents (organisation_id, ref, key, subject, subject_id, condition, "
        "severity, since, opened_at, ready_at) values ($1, 'incident-a', 'a', 'device', 1, "
        "'offline', 'critical', $2, $2, $2)",
        *(own, NOW),
    )
    names["incident"] = "incident-a"
    await owner.execute(
        "with made as (insert into releases (ref, component, version, floor, target, length, "
        "sha256, hardware, published_at) values ('release-a', 'agent', '2.0.0', '1.0.0', 'a', 9, "
        "repeat('0', 64), '{DC2}', $1) returning id) insert into bundles (ref, name, releases, "
        "created_at) select 'bundle-a', 'Agent 2.0.0', array[id], $1 from made",
        NOW,
    )
    await owner.execute(
        "insert into device_firmware (device_id, organisation_id, hardware, components, "
        "reported_at) select id, organisation_id, 'DC2', $2, $1 from devices",
        *(NOW, '{"agent": {"version": "1.0.0"}}'),
    )
    for number, (path, act) in enumerate(PRIVILEGED.items()):
        address = path.format(**names)
        before = await owner.fetchval("select count(*) from audit")
        one = {**form, "name": f"Name {number}", "spot": names.get("spot", "")}
        one["version"] = await _version(people, address)
        one["do"] = DOES.get(path, "identify")
        if path.endswith("/new"):
            query = urlencode({**ROLLOUT, "do": "look"})
            _, html = await load(browser, f"{address}?{query}")
            one["shown"] = re.findall(r'name="shown" value="(\w+)"', html)[0]
        one |= {"kind": "identify"} if path.endswith("/commands") else {}
        response = await post(browser, address, one)
        assert response.status in (200, 303), (path, await response.text())
        rows = await owner.fetch("select act, actor from audit order by id offset $1", before)
        assert act in [row["act"] for row in rows], path
        assert all(row["actor"].startswith("user ") for row in rows)
        for kind in ("region", "door", "spot", "command", "rollout", "freeze"):
            names[kind] = await owner.fetchval(f"select min(ref) from {kind}s") or ""
    forms = {
        re.sub(r"{organisation}|{site}", lambda m: {"o": "own", "s": "own-site"}[m[0][1]], found)
        for route in people.app.router.routes()
        if route.method == "POST" and route.resource is not None
        for found in [route.resource.canonical]
        if found.startswith("/console") and not found.startswith("/console/people")
    }
    assert forms == set(PRIVILEGED)  # a new form has its line above


async def _version(people: People, address: str) -> str:
    """Return the version of the thing that an address edits."""
    own = people.organisations["own"]
    async with acting(people.desk, "version", organisation=own) as connection:
        ref = address.rsplit("/", 1)[1]
        if ref == "settings":
            return "0"
        if "/doors/" in address:
            return (await doors.find(connection, own, ref))[1].version
        if "/spots/" in address and not address.endswith("calibrate"):
            return (await spots.find(connection, own, ref, now=people.now))[1].version
        if "/regions/" in address:
            return (await organisations.find_region(connection, own, ref)).version
        if address == OWN:
            return (await organisations.find(connection, "own")).version
        return (await sites.find(connection, own, "own-site")).version
