"""The technician's pages and acts: who may, what is answered, once, also after the session."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from html import unescape
from typing import Any

import pytest
from aiohttp import ClientSession

from ops import register
from ops.deployment import Deployment
from ops.services.stack import Stack
from protocol.label import Label, bind_proof, label
from server.config import Secret, Settings
from server.errors import NotFoundError
from server.people.roles import Grant, Role
from server.provisioning.vouchers import withdraw_voucher
from tests.integration.people_world import HTML, People, load

pytestmark = pytest.mark.services

EMAIL = "tove@example.com"
JSON = {"Accept": "application/json", "Sec-Fetch-Site": "same-origin"}


@dataclass
class Shop:
    """A site with two spots and a technician who is signed in."""

    people: People
    organisation: int
    site: int
    user: int
    phone: ClientSession
    numbers: list[int] = field(default_factory=lambda: [0])

    @property
    def now(self) -> datetime:
        return self.people.now

    async def device(self, serial: str = "DC-0001", *, kind: str = "counter") -> Label:
        """Put a device on the allow-list; its label."""
        digits = "".join("23456789AB"[ord(c) % 10] for c in serial)
        found = label(serial, (digits * 16)[:16])
        await self.people.owner.execute(
            "insert into devices (organisation_id, device, kind, serial, setup_sha256, state) "
            "values ($1, $2, $3, $4, $5, 'manufactured')",
            *(self.organisation, f"dc-{serial.lower():a>9}", kind, serial, found.secret_sha256),
        )
        return found

    async def enrol(self, serial: str) -> None:
        """Give a device the certificate that it would have asked for."""
        await self.people.owner.execute(
            "insert into certificates (serial, organisation_id, device_id, spki_sha256, state, "
            "activated_at) select $1, organisation_id, id, sha256($1::text::bytea), 'active', $2 "
            "from devices where serial = $1",
            *(serial, self.now),
        )

    def act(self, kind: str, **said: Any) -> dict[str, Any]:
        """Return what a phone would send."""
        self.numbers[0] += 1
        at_ms = said.pop("at_ms", round(self.now.timestamp() * 1000))
        return {"act": f"act-{self.numbers[0]:08}", "kind": kind, "at_ms": at_ms, **said}

    async def send(
        self,
        *acts: Any,
        phone: ClientSession | None = None,
        csrf: str | None = None,
        **headers: str,
    ) -> list[dict[str, Any]]:
        """Send a batch as a page would; the answers."""
        phone = phone or self.phone
        if csrf is None:
            async with phone.get("/tech/session", headers=JSON) as response:
                csrf = (await response.json())["csrf"] if response.status == 200 else ""
        async with phone.post(
            "/tech/acts",
            json={"acts": list(acts)},
            headers={**JSON, "X-CSRF-Token": csrf, **headers},
        ) as response:
            assert response.status == 200, await response.text()
            answers: list[dict[str, Any]] = (await response.json())["answers"]
            return answers

    async def claim(self, found: Label, spot: str = "door-1", **said: Any) -> dict[str, Any]:
        [answer] = await self.send(self.act("claim", spot=spot, label=found.text, **said))
        return answer

    async def voucher(self) -> dict[str, Any]:
        """Take the site along."""
        async with self.phone.get("/tech/session", headers=JSON) as response:
            csrf = (await response.json())["csrf"]
        async with self.phone.post(
            "/tech/sites/own-site/voucher", headers={**JSON, "X-CSRF-Token": csrf}
        ) as response:
            found: dict[str, Any] = await response.json()
            return found

    def bound(self, found: Label, voucher: dict[str, Any], spot: str = "door-1") -> dict[str, Any]:
        """Return the act of a phone without signal."""
        at_ms = round(self.now.timestamp() * 1000)
        proof = bind_proof(
            found.secret_sha256,
            voucher=voucher["ref"],
            serial=found.serial,
            spot=spot,
            at_ms=at_ms,
        )
        return self.act(
            "bind", spot=spot, serial=found.serial, proof=proof, voucher=voucher["text"]
        )

    async def state(self, serial: str = "DC-0001") -> str:
        found: str = await self.people.owner.fetchval(
            "select state from devices where serial = $1", serial
        )
        return found

    async def stands(self) -> list[tuple[str, str, datetime | None]]:
        """Return who stood where, and until when."""
        rows = await self.people.owner.fetch(
            "select d.serial, p.ref, upper(a.valid) as until from assignments a "
            "join devices d on d.id = a.device_id join spots p on p.id = a.spot_id order by a.id"
        )
        return [(row["serial"], row["ref"], row["until"]) for row in rows]


@pytest.fixture
async def shop(people: People) -> Shop:
    organisation = people.organisations["own"]
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    for ref in ("door-1", "door-2"):
        await people.owner.execute(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, $3, $3, 'counter')",
            *(organisation, site, ref),
        )
    user = await people.user(EMAIL, Grant(Role.TECHNICIAN, organisation, site=site))
    return Shop(people, organisation, site, user, await people.signed_in(EMAIL))


# -- who sees what -----------------------------------------------------------------------------


async def test_a_technician_begins_at_the_sites_of_their_grants(shop: Shop) -> None:
    await shop.people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'far', 'Far away', 'Europe/Stockholm')",
        shop.organisation,
    )
    status, html = await load(shop.phone, "/")
    assert status == 200
    assert "own-site" in html
    assert "Far away" not in html
    for path in ("/tech/sites/far", "/tech/sites/other-site", "/tech/sites/other-site/mount"):
        assert (await load(shop.phone, path))[0] == 404


async def test_who_may_not_provision_finds_no_such_pages(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    for path in ("/tech", "/tech/sites/own-site", "/tech/claims/claim-1"):
        assert (await load(browser, path))[0] == 404


async def test_the_camera_is_for_these_pages_alone(shop: Shop) -> None:
    async with shop.phone.get("/tech/sites/own-site/mount", headers=HTML) as response:
        assert "camera=(self)" in response.headers["Permissions-Policy"]
        assert "worker-src 'self'" in response.headers["Content-Security-Policy"]
    async with shop.phone.get("/account", headers=HTML) as response:
        assert "camera=()" in response.headers["Permissions-Policy"]
        assert "worker-src" not in response.headers["Content-Security-Policy"]


async def test_the_service_worker_keeps_files_that_are_there(shop: Shop) -> None:
    async with shop.phone.get("/tech/worker.js") as response:
        assert response.headers["Service-Worker-Allowed"] == "/tech"
        text = await response.text()
    files = json.loads(text[text.index("FILES = ") + 8 : text.index("];") + 1])
    assert any("jsqr.js" in file for file in files)
    for file in files:
        async with shop.phone.get(file) as response:
            assert response.status == 200, file
    async with shop.phone.get("/tech/manifest.webmanifest") as response:
        manifest = json.loads(await response.text())
    assert (manifest["start_url"], manifest["scope"]) == ("/tech", "/tech")
    async with shop.phone.get(manifest["icons"][0]["src"]) as response:
        assert response.content_type == "image/svg+xml"


# -- claims ------------------------------------------------------------------------------------


async def test_a_scanned_device_is_claimed_and_shown(shop: Shop) -> None:
    answer = await shop.claim(await shop.device())
    assert answer["done"]
    status, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert status == 200
    assert 'data-step="asked" data-mark="waiting"' in html
    assert "Usually takes 60 s at most." in html
    assert await shop.state() == "claimed"


async def test_a_device_that_is_enrolled_is_placed_at_once(shop: Shop) -> None:
    found = await shop.device()
    await shop.enrol("DC-0001")
    answer = await shop.claim(found)
    assert await shop.stands() == [("DC-0001", "door-1", None)]
    assert await shop.state() == "installed"
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert 'data-step="certified" data-mark="done"' in html


async def test_an_act_is_done_once_however_often_it_is_sent(shop: Shop) -> None:
    act = shop.act("claim", spot="door-1", label=(await shop.device()).text)
    first = await shop.send(act, act)
    assert first[0] == first[1]
    assert await shop.send(act) == first[:1]
    assert await shop.people.owner.fetchval("select count(*) from technician_claims") == 1


async def test_what_takes_longer_than_usual_says_what_to_look_at(shop: Shop) -> None:
    answer = await shop.claim(await shop.device())
    shop.people.clock.advance(61)
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert "power light" in html
    await shop.people.owner.execute(
        "update devices set asked = 'key_in_use', asked_at = $1", shop.now
    )
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert 'data-step="asked" data-mark="failed"' in html
    assert "The memory card is a copy" in unescape(html)
    shop.people.clock.advance(900)
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert "This claim is over" in html


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("sv", "Serienumret är inte anmält."),
        ("da", "Serienummeret er ikke tilmeldt."),
        ("en", "This serial is not announced."),
    ],
)
async def test_a_refusal_says_what_to_do_in_the_technicians_language(
    shop: Shop, language: str, sentence: str
) -> None:
    act = shop.act("claim", spot="door-1", label=label("DC-9999", "2" * 16).text)
    async with shop.phone.get(f"/language?to={language}&back=/tech", headers=HTML):
        [answer] = await shop.send(act)
    assert not answer["done"]
    assert (answer["code"], answer["then"]) == ("unknown_serial", "ask a person")
    assert answer["sentence"].startswith(sentence)


async def test_each_act_of_a_batch_has_its_own_answer(shop: Shop) -> None:
    found = await shop.device()
    answers = await shop.send(
        {"kind": "claim", "act": "act-broken"},
        shop.act("claim", spot="elsewhere", label=found.text),
        shop.act("claim", spot="door-2", label=found.text),
        "nonsense",
    )
    assert [answer.get("code") for answer in answers] == [
        "bad_act",
        "unknown_spot",
        None,
        "bad_act",
    ]
    assert answers[2]["done"]


async def test_a_spot_is_made_and_used_in_one_batch(shop: Shop) -> None:
    found = await shop.device()
    made = shop.act(
        "spot",
        site="own-site",
        ref="spot-abcdefgh",
        name="  North   entrance ",
        door="North",
        takes="counter",
        purpose="entrance",
        height_cm=245,
    )
    claimed = shop.act("claim", spot="spot-abcdefgh", label=found.text)
    answers = await shop.send(made, claimed)
    assert [answer["done"] for answer in answers] == [True, True]
    assert (await shop.send(made))[0] == answers[0]
    row = await shop.people.owner.fetchrow(
        "select p.name, d.name as door, m.height_cm, m.purpose from spots p "
        "join doors d on d.id = p.door_id join mountings m on m.spot_id = p.id "
        "where p.ref = 'spot-abcdefgh'"
    )
    assert tuple(row.values()) == ("North entrance", "North", 245, "entrance")
    again = shop.act(
        "spot", site="own-site", ref="spot-jkmnpqrs", name="Kiosk", door="North", takes="kiosk"
    )
    assert (await shop.send(again))[0]["done"]
    assert await shop.people.owner.fetchval("select count(*) from doors") == 1


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"name": "  "}, "bad_spot"),
        ({"height_cm": 5}, "bad_spot"),
        ({"purpose": "party"}, "bad_spot"),
        ({"ref": "spot-1"}, "bad_spot"),
        ({"name": "door-1"}, "spot_exists"),
        ({"site": "other-site"}, "unknown_site"),
    ],
)
async def test_a_spot_that_cannot_be_is_refused(
    shop: Shop, said: dict[str, Any], code: str
) -> None:
    usual = {"site": "own-site", "ref": "spot-abcdefgh", "name": "North", "takes": "counter"}
    [answer] = await shop.send(shop.act("spot", **(usual | said)))
    assert answer["code"] == code


async def test_a_swap_ends_the_old_device_where_the_new_one_begins(shop: Shop) -> None:
    old, new = await shop.device(), await shop.device("DC-0002")
    for serial in ("DC-0001", "DC-0002"):
        await shop.enrol(serial)
    await shop.claim(old)
    shop.people.clock.advance(3600)
    assert (await shop.claim(new))["code"] == "spot_taken"
    swapped = shop.now
    assert (await shop.claim(new, replaces="dc-aadc-0001"))["done"]
    assert await shop.stands() == [("DC-0001", "door-1", swapped), ("DC-0002", "door-1", None)]
    assert await shop.state() == "returned"


async def test_another_technicians_claim_gives_way_for_a_reason(shop: Shop) -> None:
    found = await shop.device()
    await shop.people.user(
        "ture@example.com", Grant(Role.TECHNICIAN, shop.organisation, site=shop.site)
    )
    other = await shop.people.signed_in("ture@example.com")
    await shop.send(shop.act("claim", spot="door-1", label=found.text), phone=other)
    act = shop.act("claim", spot="door-1", label=found.text)
    assert (await shop.send(act))[0]["code"] == "claimed_by_another"
    assert (await shop.send(act | {"reason": "Ture went home"}))[0]["done"]


# -- by which right ----------------------------------------------------------------------------


async def test_an_act_without_the_forms_token_has_no_session(shop: Shop) -> None:
    act = shop.act("claim", spot="door-1", label=(await shop.device()).text)
    [unproved] = await shop.send(act, csrf="wrong")
    [foreign] = await shop.send(act, **{"Sec-Fetch-Site": "cross-site"})  # type: ignore[arg-type]
    assert (unproved["code"], foreign["code"]) == ("sign_in", "sign_in")
    assert await shop.people.owner.fetchval("select count(*) from technician_claims") == 0


async def test_an_act_of_another_user_of_the_phone_waits_for_them(shop: Shop) -> None:
    act = shop.act("claim", spot="door-1", label=(await shop.device()).text, user="somebody-else")
    [answer] = await shop.send(act)
    assert answer["code"] == "sign_in"


async def test_what_was_done_offline_arrives_by_its_voucher_after_the_session(shop: Shop) -> None:
    found, voucher = await shop.device(), await shop.voucher()
    made = shop.act(
        "spot",
        site="own-site",
        ref="spot-abcdefgh",
        name="Cellar",
        takes="counter",
        voucher=voucher["text"],
    )
    bound = shop.bound(found, voucher, "spot-abcdefgh")
    shop.people.clock.advance(13 * 3600)  # the session is over, the voucher not yet
    await shop.enrol("DC-0001")
    stranger = shop.people.browser()
    answers = await shop.send(made, bound, phone=stranger)
    assert [answer["done"] for answer in answers] == [True, True]
    assert await shop.send(made, bound, phone=stranger) == answers
    assert await shop.stands() == [("DC-0001", "spot-abcdefgh", None)]
    [unsigned] = await shop.send({k: v for k, v in made.items() if k != "voucher"}, phone=stranger)
    assert unsigned["code"] == "sign_in"


async def test_a_voucher_is_good_for_its_site_and_its_time(shop: Shop) -> None:
    voucher = await shop.voucher()
    await shop.people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'next', 'Next door', 'Europe/Stockholm')",
        shop.organisation,
    )
    stranger = shop.people.browser()

    async def outcome(**said: Any) -> str:
        usual = {"ref": "spot-abcdefgh", "name": "x", "takes": "counter", "site": "own-site"}
        act = shop.act("spot", **(usual | {"voucher": voucher["text"]} | said))
        return str((await shop.send(act, phone=stranger))[0].get("code", "done"))

    late = shop.now + timedelta(hours=25)
    assert await outcome(site="next") == "unknown_site"
    assert await outcome(site="other-site") == "unknown_site"
    assert await outcome(at_ms=round(late.timestamp() * 1000)) == "voucher_expired"
    assert await outcome(voucher=voucher["text"][:-4] + "AAAA") == "voucher_bad"
    assert await outcome() == "done"
    async with shop.people.owner.transaction():
        await withdraw_voucher(shop.people.owner, voucher["ref"], actor="command", now=shop.now)
    assert await outcome(ref="spot-jkmnpqrs", name="y") == "voucher_withdrawn"


async def test_a_voucher_is_withdrawn_by_a_command(
    shop: Shop, stack: Stack, world_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(Secret(""), Secret(""), Secret(""), stack.endpoints.pki)
    found = Deployment(Secret(stack.endpoints.dsn("owner", world_database)), settings)
    monkeypatch.setattr(register, "deployment", lambda: found)
    voucher = await shop.voucher()
    words = ["device", "voucher", "withdraw", voucher["ref"]]
    assert await asyncio.to_thread(register.main, words) == 0
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(register.main, words)
    audited = await shop.people.owner.fetch(
        "select actor, subject from audit where act = 'voucher withdrawn'"
    )
    assert [tuple(row.values()) for row in audited] == [("command", voucher["ref"])]
    assert await shop.people.owner.fetchval("select withdrawn_at is not null from vouchers")


# -- walk test and sign-off --------------------------------------------------------------------


async def installed(shop: Shop) -> str:
    found = await shop.device()
    await shop.enrol("DC-0001")
    return str((await shop.claim(found))["claim"])


async def counted(shop: Shop, minutes: list[tuple[int, int]], *, since: datetime) -> None:
    """Let the device's frame be stored."""
    until = since + timedelta(minutes=len(minutes))
    spot, device = await shop.people.owner.fetchrow(
        "select p.id, d.id from spots p, devices d where p.ref = 'door-1' and d.serial = 'DC-0001'"
    )
    boot = await shop.people.owner.fetchval(
        "insert into boots (device_id, boot_id, ordinal, next_seq, quality, stored_to) "
        "values ($1, 1, 1, 1, 2, $2) returning id",
        *(device, until),
    )
    await shop.people.owner.execute(
        "insert into readings values ($1, $2, $3, 0, 1, 0, $4, 0, 60, $5)",
        *(since, spot, boot, 60_000 * len(minutes), [n for both in minutes for n in both]),
    )


def taps(since: datetime, entered: int, left: int) -> list[tuple[int, str]]:
    start = round(since.timestamp() * 1000) + 5_000
    return [
        *((start + n * 1000, "in") for n in range(entered)),
        *((start + (entered + n) * 1000, "out") for n in range(left)),
    ]


async def test_a_walk_test_is_compared_and_signed_off(shop: Shop) -> None:
    claim = await installed(shop)
    since = shop.now
    shop.people.clock.advance(120)
    begun, until = (round(at.timestamp() * 1000) for at in (since, shop.now))
    walked = taps(since, 14, 10)
    walk = shop.act("walk", claim=claim, begun_ms=begun, until_ms=until, taps=walked)
    early = await compared(shop, claim, begun, until, walked)
    assert (early["verdict"], early["whole"]) == ("waiting", False)
    assert "tell of its minutes: 24." in early["html"]
    await counted(shop, [(14, 10), (0, 0)], since=since)
    late = await compared(shop, claim, begun, until, walked)
    assert (late["verdict"], late["whole"], late["counts"]) == ("good", True, True)
    assert "The count is within 14 % of the truth" in unescape(late["html"])
    signed = shop.act("sign off", claim=claim, staff=" Disa  Dahl ")
    assert [answer["done"] for answer in await shop.send(walk, signed)] == [True, True]
    assert await shop.state() == "in service"
    _, html = await load(shop.phone, f"/tech/claims/{claim}/sheet")
    for words in ("Disa Dahl", "DC-0001", "door-1", "own-site", "Ada", "14 of 14 counted"):
        assert words in unescape(html), words
    held = json.loads(await shop.people.owner.fetchval("select walk from technician_claims"))
    assert held["result"]["verdict"] == "good"
    await shop.people.owner.execute("delete from readings")  # minutes are not kept for ever
    _, html = await load(shop.phone, f"/tech/claims/{claim}/sheet")
    assert "14 of 14 counted" in html
    audit = await shop.people.owner.fetch(
        "select act, detail::text from audit where act like '%signed off'"
    )
    assert len(audit) == 1
    assert "Disa" not in audit[0]["detail"]  # the chain forgets nothing


async def compared(
    shop: Shop, claim: str, begun: int, until: int, walked: list[tuple[int, str]]
) -> dict[str, Any]:
    async with shop.phone.get("/tech/session", headers=JSON) as response:
        csrf = (await response.json())["csrf"]
    async with shop.phone.post(
        f"/tech/claims/{claim}/compare",
        json={"begun_ms": begun, "until_ms": until, "taps": walked},
        headers={**JSON, "X-CSRF-Token": csrf},
    ) as response:
        assert response.status == 200, await response.text()
        found: dict[str, Any] = await response.json()
        return found


async def test_a_line_that_is_read_backwards_is_compared_as_it_is_read(shop: Shop) -> None:
    claim, since = await installed(shop), shop.now
    await shop.people.owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, reversed) "
        "select organisation_id, id, 0, true from spots where ref = 'door-1'"
    )
    shop.people.clock.advance(60)
    await counted(shop, [(10, 14)], since=since)
    begun, until = (round(at.timestamp() * 1000) for at in (since, shop.now))
    assert (await compared(shop, claim, begun, until, taps(since, 14, 10)))["verdict"] == "good"


async def test_a_sign_off_waits_for_the_device_and_names_who_signs(shop: Shop) -> None:
    claim = (await shop.claim(await shop.device()))["claim"]
    signed = shop.act("sign off", claim=claim, staff="Disa")
    [answer] = await shop.send(signed)
    assert (answer["code"], answer["then"]) == ("not_installed", "wait")
    [nameless] = await shop.send(shop.act("sign off", claim=claim, staff="  "))
    assert nameless["code"] == "bad_staff"
    shop.people.clock.advance(16 * 60)
    assert (await shop.send(signed))[0]["code"] == "claim_over"


async def test_a_walk_made_offline_names_its_claim_by_the_act_that_opened_it(shop: Shop) -> None:
    found = await shop.device()
    await shop.enrol("DC-0001")
    claim = shop.act("claim", spot="door-1", label=found.text)
    begun = round(shop.now.timestamp() * 1000)
    shop.people.clock.advance(60)
    walk = shop.act("walk", claim=claim["act"], begun_ms=begun, until_ms=begun + 60_000, taps=[])
    signed = shop.act("sign off", claim=claim["act"], staff="Disa")
    [early] = await shop.send(walk)
    assert (early["code"], early["then"]) == ("act_waits", "wait")
    assert [answer["done"] for answer in await shop.send(claim, walk, signed)] == [True] * 3
    assert await shop.state() == "in service"


@pytest.mark.parametrize(
    "broken",
    [
        {"until_ms": 1},
        {"taps": [[1, "in"]]},
        {"taps": [[1_775_131_200_000, "sideways"]]},
        {"until_ms": 1_775_131_200_000 + 7 * 3_600_000},
    ],
)
async def test_a_walk_that_cannot_be_is_refused(shop: Shop, broken: dict[str, Any]) -> None:
    claim = await installed(shop)
    usual = {"begun_ms": 1_775_131_200_000, "until_ms": 1_775_131_260_000, "taps": []}
    shop.people.clock.advance(600)
    [answer] = await shop.send(shop.act("walk", claim=claim, **(usual | broken)))
    assert answer["code"] == "bad_walk"


async def test_a_claim_is_called_off(shop: Shop) -> None:
    claim = (await shop.claim(await shop.device()))["claim"]
    _, html = await load(shop.phone, f"/tech/claims/{claim}")
    csrf = re.findall(r'name="csrf" value="([^"]+)"', html)[-1]
    async with shop.phone.post(
        f"/tech/claims/{claim}/end", data={"csrf": csrf}, headers=HTML, allow_redirects=False
    ) as response:
        assert response.headers["Location"] == "/tech/sites/own-site"
    _, html = await load(shop.phone, f"/tech/claims/{claim}")
    assert "This claim is over" in html


async def test_a_scanned_serial_is_told_before_anything_is_confirmed(shop: Shop) -> None:
    await shop.device()

    async def asked(serial: str) -> dict[str, Any]:
        path = f"/tech/sites/own-site/device?serial={serial}"
        async with shop.phone.get(path, headers=JSON) as response:
            found: dict[str, Any] = await response.json()
            return found

    assert (await asked("dc-0001"))["kind"] == "counter"
    assert "not announced" in (await asked("DC-0002"))["problem"]
    assert "not announced" in (await asked("?"))["problem"]
    await shop.people.owner.execute("update devices set state = 'suspended'")
    assert "blocked" in (await asked("DC-0001"))["problem"]
