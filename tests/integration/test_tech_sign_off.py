"""Walk tests and sign-offs: what a technician counted by eye, compared and signed by the staff."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from html import unescape
from typing import Any

import pytest

from tests.integration.people_world import load
from tests.integration.tech_world import JSON, Shop
from tests.integration.tech_world import shop as shop

pytestmark = pytest.mark.services


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
