"""Recounts by programs and on pages: kept once, shown beside the counter, applied by a person."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ext.reference import observed_slots
from server.api.keys import create_api_key
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services
FROM = datetime(2026, 4, 1, 9, tzinfo=UTC)


@pytest.fixture
async def door(people: People) -> int:
    """A counter that counted 80 in and 40 out in each of 8 quarters; the rows of its spot."""
    owner, organisation = people.owner, people.organisations["own"]
    site = await owner.fetchval("select id from sites where ref = 'own-site'")
    spot: int = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "values ($1, $2, 'spot-door', 'Main door', 'counter') returning id",
        *(organisation, site),
    )
    device = await owner.fetchval(
        "insert into devices (organisation_id, device, kind, state) "
        "values ($1, 'dc-door23456789', 'counter', 'in service') returning id",
        organisation,
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange(null, null))",
        *(organisation, device, spot),
    )
    await owner.executemany(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, resolution_s) "
        "values ($1, $2, $3, 80, 40, 60)",
        [(FROM + timedelta(minutes=15 * n), observed_slots(0, 0, 900_000), spot) for n in range(8)],
    )
    return spot


async def ask(
    people: People, method: str, path: str, body: object = None, *, status: int = 200
) -> dict[str, Any]:
    key = await create_api_key(
        people.owner, people.organisations["own"], "test", scopes=("read", "accuracy:write")
    )
    async with people.browser().request(
        method, f"/v1{path}", json=body, headers={"Authorization": f"Bearer {key}"}
    ) as response:
        answer: dict[str, Any] = await response.json(content_type=None)
        assert response.status == status, answer
        return answer


def blocks(count: int = 6, entered: int = 100, left: int = 50) -> list[dict[str, object]]:
    return [
        {"from": (FROM + timedelta(minutes=15 * n)).isoformat(), "in": entered, "out": left}
        for n in range(count)
    ]


RECOUNT: dict[str, object] = {"spot": "spot-door", "method": "video", "counted_by": "Ada"}


async def test_a_recount_by_a_program_gives_error_and_factor(people: People, door: int) -> None:
    (row,) = (await ask(people, "GET", "/accuracy"))["data"]
    assert (row["audited_on"], row["in"], row["not_proposed"]) == (None, None, "too_few")
    made = await ask(people, "POST", "/recounts", {**RECOUNT, "blocks": blocks()}, status=201)
    (row,) = (await ask(people, "GET", "/accuracy?site=own-site"))["data"]
    assert row["audited_on"] == "2026-04-01"
    assert row["in"]["error"] == pytest.approx(-0.2)
    assert row["in"]["low"] < -0.2 < row["in"]["high"] < 0
    assert row["proposed"]["factor"] == pytest.approx(1.25)
    listed = (await ask(people, "GET", "/recounts"))["data"]
    assert [(each["counted_in"], each["state"]) for each in listed] == [(80, "compared")] * 6
    await ask(people, "DELETE", f"/recounts/{made['recount']}")
    assert (await ask(people, "GET", "/recounts"))["data"] == []


async def test_a_recount_that_cannot_be_is_refused_by_its_field(people: People, door: int) -> None:
    for change, code, field in (
        ({"spot": "spot-none"}, "not_found", None),
        ({"method": "guess"}, "bad_value", "method"),
        ({"blocks": []}, "bad_value", "blocks"),
        ({"blocks": [{"from": NOW.isoformat(), "in": 1, "out": 1}]}, "bad_value", "blocks[0].from"),
    ):
        body = {**RECOUNT, "blocks": blocks(), **change}
        status = 404 if code == "not_found" else 422
        answer = await ask(people, "POST", "/recounts", body, status=status)
        assert (answer["code"], answer.get("parameter")) == (code, field)
    assert not await people.owner.fetchval("select count(*) from recounts")
