"""Questionnaires from the desk to the device: made, published, signed, fetched, retired."""

from typing import Any

import asyncpg
import pytest

from protocol import questionnaire as wire
from protocol.plan import Plan, Shown
from server.api.keys import create_api_key
from server.feedback import questionnaires
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services


def content(text: str = "How was it?") -> dict[str, Any]:
    return {
        "languages": ["sv", "en"],
        "title": {"sv": "Hej", "en": "Hello"},
        "questions": [
            {"kind": "smiley4", "text": {"sv": "Hur var det?", "en": text}},
            {
                "kind": "choice",
                "text": {"sv": "Varför?", "en": "Why?"},
                "options": [{"sv": "Kön", "en": "Queue"}, {"sv": "Annat", "en": "Other"}],
                "after": {"question": 0, "answers": [2, 3]},
            },
        ],
    }


class Desk:
    """A program that may publish, and a kiosk that stands at its organisation's site."""

    def __init__(self, people: People, key: str, device: int) -> None:
        self.people = people
        self.key = key
        self.device = device

    async def ask(
        self, method: str, path: str, body: object = None, *, status: int = 200
    ) -> dict[str, Any]:
        async with self.people.browser().request(
            method, f"/v1{path}", json=body, headers={"Authorization": f"Bearer {self.key}"}
        ) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            assert response.status == status, answer
            return answer

    async def made(self, text: str = "How was it?", name: str = "Visit") -> dict[str, Any]:
        body = {"name": name, "content": content(text)}
        return await self.ask("POST", "/questionnaires", body, status=201)

    async def published(self, questionnaire: str, **more: object) -> dict[str, Any]:
        body = {"questionnaire": questionnaire, "site": "site-kiosks", **more}
        return await self.ask("POST", "/publications", body, status=201)

    async def plan(self) -> tuple[Plan, list[bytes]]:
        return await questionnaires.plan_of(self.people.owner, self.device, now=NOW)


@pytest.fixture
async def desk(people: People) -> Desk:
    owner, organisation = people.owner, people.organisations["own"]
    key = await create_api_key(owner, organisation, "test", scopes=("read", "opinions:write"))
    return Desk(people, key, await kiosk(owner, organisation))


async def kiosk(owner: asyncpg.Connection, organisation: int) -> int:
    """Mount a kiosk and a counter at a site; return the kiosk's row."""
    site = await owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'site-kiosks', 'Vasagatan', 'Europe/Stockholm') returning id",
        organisation,
    )
    found = 0
    for kind in ("counter", "kiosk"):
        spot = await owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, 'spot-' || $3, $3, $3) returning id",
            *(organisation, site, kind),
        )
        found = await owner.fetchval(
            "insert into devices (organisation_id, device, kind, state) "
            "values ($1, $2, $3, 'in service') returning id",
            *(organisation, f"fk-{kind}-2345", kind),
        )
        await owner.execute(
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "values ($1, $2, $3, tstzrange(null, null))",
            *(organisation, found, spot),
        )
    return found


async def test_a_version_is_made_once_and_its_hash_is_that_of_its_content(desk: Desk) -> None:
    first = await desk.made()
    assert await desk.made() == first
    expected = wire.make({"format": 1, **content()})
    assert first["hash"] == expected.hash.hex()
    second = await desk.made("How did it go?")
    assert (first["version"], second["version"]) == (1, 2)
    assert second["hash"] != first["hash"]
    shown = await desk.ask("GET", f"/questionnaires/{first['questionnaire']}")
    assert shown["content"]["questions"][1]["after"] == {"question": 0, "answers": [2, 3]}
    row = await desk.people.owner.fetchrow(
        "select content, definition::text as definition from questionnaires where ref = $1",
        first["questionnaire"],
    )
    assert row["content"] == expected.content
    assert "smiley4" in row["definition"]  # so that presses find what was asked
    listed = await desk.ask("GET", "/questionnaires?limit=1")
    rest = await desk.ask("GET", f"/questionnaires?limit=1&cursor={listed['next']}")
    assert [*listed["data"], *rest["data"]] == sorted(
        [first, second], key=lambda one: one["questionnaire"]
    )


async def test_what_no_kiosk_could_show_is_refused_by_field(desk: Desk) -> None:
    bad = content()
    bad["questions"][1]["after"]["answers"] = [4]
    problem = await desk.ask(
        "POST", "/questionnaires", {"name": "Visit", "content": bad}, status=422
    )
    assert (problem["code"], problem["parameter"]) == ("bad_value", "questions[1].after")
    made = await desk.made()
    for field, value in (
        ("site", "site-nowhere"),
        ("spot", "spot-counter"),
        ("until", "2026-01-01"),
        ("weekdays", [8]),
        ("opens", 9 * 60),
    ):
        body = {"questionnaire": made["questionnaire"], "site": "site-kiosks"}
        body |= {"from": "2026-03-01", field: value}
        problem = await desk.ask("POST", "/publications", body, status=422)
        assert problem["code"] == "bad_value", field
        assert problem["parameter"] == {"opens": "hours"}.get(field, field)


async def test_a_device_is_to_show_what_is_published_where_it_stands(desk: Desk) -> None:
    plan, contents = await desk.plan()
    assert (plan.show, contents) == ((), [])
    made = await desk.made()
    everywhere = await desk.published(made["questionnaire"], weekdays=[6, 7])
    other = await desk.made("And now?")
    await desk.published(other["questionnaire"], spot="spot-kiosk", opens=540, closes=1080)
    plan, contents = await desk.plan()
    assert (plan.device, plan.site, plan.zone) == (
        "fk-kiosk-2345",
        "Vasagatan",
        "Europe/Stockholm",
    )
    digests = [wire.read(each).digest for each in contents]
    assert plan.show == (
        Shown(digests[0], hours=(540, 1080)),
        Shown(digests[1], weekdays=(6, 7)),
    )
    assert [digest[:16] for digest in digests] == [other["hash"], made["hash"]]
    ended = await desk.ask("DELETE", f"/publications/{everywhere['publication']}")
    assert ended["ended_at"] is not None
    assert await desk.ask("DELETE", f"/publications/{everywhere['publication']}") == ended
    await desk.ask("DELETE", f"/questionnaires/{other['questionnaire']}")
    assert (await desk.plan())[0].show == ()
    body = {"questionnaire": other["questionnaire"], "site": "site-kiosks"}
    assert (await desk.ask("POST", "/publications", body, status=409))["code"] == "conflict"
    audited = await desk.people.owner.fetch(
        "select act from audit where subject like 'questionnaire-%' or subject like 'publication-%'"
        " order by id"
    )
    assert [row["act"] for row in audited] == [
        "questionnaire made",
        "questionnaire published",
        "questionnaire made",
        "questionnaire published",
        "publication ended",
        "questionnaire retired",
        "publication ended",
    ]


async def test_the_desk_can_edit_no_version(desk: Desk) -> None:
    for column in ("content", "definition", "hash", "name", "version"):
        for may in ("update", "insert"):
            assert await desk.people.owner.fetchval(
                "select has_column_privilege('vestibule_desk', 'questionnaires', $1, $2)",
                *(column, may),
            ) is (may == "insert"), column
