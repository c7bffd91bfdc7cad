"""The register through the API: written once, edited without loss, isolated."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.api.keys import create_api_key
from tests.integration.people_world import People

pytestmark = pytest.mark.services


@dataclass
class Api:
    """A program with a key that may write the own organisation's register."""

    people: People
    key: str
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, Any], str]:
        """Return status, answer and ETag."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.people.browser().request(
            method,
            f"/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.key}", **named},
        ) as response:
            text = await response.json(content_type=None)
            return response.status, text, response.headers.get("ETag", "")


@pytest.fixture
async def api(people: People) -> Api:
    key = await create_api_key(
        people.owner, people.organisations["own"], scopes=("read", "register:write")
    )
    return Api(people, key)


SITE = {"name": "Shop", "time_zone": "Europe/Oslo", "hours": "Mo-Fr 10:00-19:00; Su off"}


async def test_the_register_is_written_and_read(api: Api) -> None:
    _, region, _ = await api.ask("POST", "/regions", {"name": "North"})
    body = {**SITE, "region": region["region"], "opens_on": "2026-01-01"}
    status, site, etag = await api.ask("POST", "/sites", body)
    assert status == 201, site
    assert site["hours"] == "Mo-Fr 10:00-19:00"
    status, again, seen = await api.ask("GET", f"/sites/{site['site']}/record")
    assert (status, again, seen) == (200, site, etag)
    _, outer, _ = await api.ask("POST", "/doors", {"site": site["site"], "name": "Outer"})
    door = {"site": site["site"], "name": "Inner", "behind": outer["door"]}
    status, inner, _ = await api.ask("POST", "/doors", door)
    assert (status, inner["behind"]) == (201, outer["door"])
    spot = {"site": site["site"], "name": "A", "kind": "counter", "door": inner["door"]}
    status, made, etag = await api.ask("POST", "/spots", {**spot, "height_cm": 300})
    assert status == 201
    status, made, _ = await api.ask(
        "PATCH", f"/spots/{made['spot']}", {"height_cm": 320}, If_Match=etag
    )
    assert (status, made["height_cm"], made["door"]) == (200, 320, inner["door"])
    status, detail, _ = await api.ask("GET", f"/sites/{site['site']}")
    assert [each["spot"] for each in detail["spots"]] == [made["spot"]]
    assert (await api.ask("GET", "/regions"))[1]["data"] == [region]
    actors = await api.people.owner.fetch(
        "select distinct actor from audit where act like any(array['site %', 'door %', 'spot %'])"
    )
    assert [row["actor"] for row in actors] == [f"key {api.key.split('_')[1]}"]


async def test_an_edit_that_comes_second_is_refused(api: Api) -> None:
    _, site, etag = await api.ask("POST", "/sites", SITE)
    path = f"/sites/{site['site']}"
    assert (await api.ask("PATCH", path, {"name": "B"}))[1]["code"] == "precondition_required"
    status, _, second = await api.ask("PATCH", path, {"address": "Storgatan 1"}, If_Match=etag)
    assert status == 200
    status, problem, _ = await api.ask("PATCH", path, {"name": "B"}, If_Match=etag)
    assert (status, problem["code"]) == (412, "changed_meanwhile")
    status, found, _ = await api.ask("PATCH", path, {"name": "B"}, If_Match=second)
    assert (status, found["name"], found["address"]) == (200, "B", "Storgatan 1")


async def test_a_write_that_is_repeated_is_done_once(api: Api) -> None:
    answers = await asyncio.gather(
        *(api.ask("POST", "/sites", SITE, Idempotency_Key="k1") for _ in range(4))
    )
    assert {status for status, _, _ in answers} == {201}
    assert len({answer["site"] for _, answer, _ in answers}) == 1
    assert await api.people.owner.fetchval("select count(*) from sites where name = 'Shop'") == 1
    other = {**SITE, "name": "Other"}
    status, problem, _ = await api.ask("POST", "/sites", other, Idempotency_Key="k1")
    assert (status, problem["code"]) == (422, "idempotency_key_reused")
    failed = await api.ask("POST", "/sites", {**other, "time_zone": "x"}, Idempotency_Key="k2")
    assert failed[0] == 422
    assert (await api.ask("POST", "/sites", other, Idempotency_Key="k2"))[0] == 201
    api.people.clock.advance(25 * 3600)
    assert (await api.ask("POST", "/sites", SITE, Idempotency_Key="k1"))[0] == 409


@pytest.mark.parametrize(
    ("body", "status", "code", "parameter"),
    [
        ({**SITE, "colour": "red"}, 422, "unknown_field", "colour"),
        ({"name": "A"}, 422, "bad_body", "time_zone"),
        ({**SITE, "name": 7}, 422, "bad_body", "name"),
        ({**SITE, "hours": "PH off"}, 422, "bad_value", "hours"),
        ({**SITE, "currency": "XXQ"}, 422, "bad_value", "currency"),
        ({**SITE, "region": "region-none2345"}, 422, "bad_value", "region"),
        ({**SITE, "name": "own-site"}, 409, "name_taken", None),
        ([], 422, "bad_body", None),
        ({**SITE, "address": "x" * 300_000}, 413, "too_large", None),
    ],
)
async def test_a_bad_body_is_refused_by_name(
    api: Api, body: object, status: int, code: str, parameter: str | None
) -> None:
    found, problem, _ = await api.ask("POST", "/sites", body)
    assert (found, problem["code"], problem.get("parameter")) == (status, code, parameter), problem


async def test_writing_takes_the_scope_and_json(api: Api) -> None:
    own = api.people.organisations["own"]
    reader = Api(api.people, await create_api_key(api.people.owner, own))
    status, problem, _ = await reader.ask("POST", "/sites", SITE)
    assert (status, problem["code"]) == (403, "missing_scope")
    async with api.people.browser().post(
        "/v1/sites", data="{}", headers={"Authorization": f"Bearer {api.key}"}
    ) as response:
        assert response.status == 415
