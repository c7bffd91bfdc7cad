"""Alerts and actions through the API: taken, done, closed with a comparison, or refused."""

from datetime import timedelta
from typing import Any

import pytest

from server.api.keys import create_api_key
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services

TODAY = NOW.date()
DONE = TODAY - timedelta(days=16)
PERIODS = ((DONE - timedelta(days=14), (30, 0, 0, 30)), (DONE, (50, 0, 0, 10)))


class Program:
    """A program that may act on opinions."""

    def __init__(self, people: People, key: str) -> None:
        self.people, self.key = people, key

    async def ask(
        self, method: str, path: str, body: object = None, *, status: int = 200
    ) -> dict[str, Any]:
        async with self.people.browser().request(
            method, f"/v1{path}", json=body, headers={"Authorization": f"Bearer {self.key}"}
        ) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            assert response.status == status, answer
            return answer

    async def planned(self, *, status: int = 201, **more: object) -> dict[str, Any]:
        till = (await self.ask("GET", "/touchpoints"))["data"][0]["touchpoint"]
        body = {
            "site": "own-site", "touchpoint": till, "title": "A second till", "owner": "Bo",
            "due_on": str(DONE), "remeasure_on": str(TODAY), **more,
        }  # fmt: skip
        return await self.ask("POST", "/actions", body, status=status)


@pytest.fixture
async def program(people: People) -> Program:
    organisation = people.organisations["own"]
    key = await create_api_key(
        people.owner, organisation, "acts", scopes=("read", "opinions:write")
    )
    made = Program(people, key)
    await made.ask("POST", "/touchpoints", {"name": "Check-out"}, status=201)
    return made


async def answered(people: People, site: str, *, better: int = 0, n: int = 1) -> None:
    """Give a site a kiosk with answers of a fortnight before and after."""
    owner, organisation = people.owner, people.organisations["own"]
    await owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "select $1, $2, $2, 'Europe/Oslo' where not exists (select from sites where ref = $2)",
        *(organisation, site),
    )
    spot = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "select organisation_id, id, ref || '-kiosk', 'kiosk', 'kiosk' from sites where ref = $1 "
        "returning id",
        site,
    )
    for first, answers in PERIODS:
        for answer, kept in enumerate(answers):
            moved = better if answer == 0 else -better
            change = moved if first == DONE and kept else 0
            await owner.execute(
                "insert into responses_day values ($1, 0, $2, $3, 9, 0, 0, 0, 1, 0, $4)",
                *(first + timedelta(days=3), spot, n * (kept + change), answer),
            )


async def test_an_action_is_closed_with_its_comparison_and_no_sooner(program: Program) -> None:
    people = program.people
    made = await program.planned()
    path = f"/actions/{made['action']}"
    assert (made["state"], made["result"]) == ("open", None)
    assert (await program.ask("PUT", f"{path}/closed", status=409))["code"] == "conflict"
    done = await program.ask("PUT", f"{path}/done", {"done_on": str(DONE)})
    assert done["state"] == "done"
    refused = await program.ask("PUT", f"{path}/closed", status=409)
    assert (refused["code"], "30 valid answers" in refused["detail"]) == ("too_little", True)
    await answered(people, "own-site")
    for number in range(6):
        await answered(people, f"control-{number}", better=-18 + number % 2)
    closed = await program.ask("PUT", f"{path}/closed")
    result = closed["result"]
    assert closed["state"] == "closed"
    assert (result["before"], result["after"]) == (pytest.approx(50), pytest.approx(83.3333))
    assert (result["n_before"], result["n_after"]) == (60, 60)
    assert (result["since"], result["until"]) == (
        str(DONE - timedelta(days=14)),
        str(DONE + timedelta(days=14)),
    )
    assert result["guarded"]
    assert len(result["controls"]) == 6
    assert result["net"] == pytest.approx(result["change"] - result["expected"])
    assert result["expected"] == pytest.approx(100 * 2.5 / 60)
    assert result["net_low"] < result["net"] < result["net_high"]
    assert (await program.ask("PUT", f"{path}/closed", status=409))["code"] == "conflict"
    assert (await program.ask("GET", "/actions"))["data"] == [closed]
    audited = await people.owner.fetch("select act from audit where subject like 'action-%'")
    assert [row["act"] for row in audited] == ["action planned", "action done", "action closed"]


async def test_before_it_is_to_be_measured_again_it_stays_open(program: Program) -> None:
    await answered(program.people, "own-site")
    made = await program.planned(remeasure_on=str(TODAY + timedelta(days=1)))
    path = f"/actions/{made['action']}"
    await program.ask("PUT", f"{path}/done", {"done_on": str(DONE)})
    refused = await program.ask("PUT", f"{path}/closed", status=409)
    assert refused["code"] == "too_early"
    assert str(TODAY + timedelta(days=1)) in refused["detail"]


async def test_where_something_else_was_done_is_no_control(program: Program) -> None:
    await answered(program.people, "own-site")
    for number in range(5):
        await answered(program.people, f"control-{number}")
    other = await program.planned(site="control-0")
    await program.ask("PUT", f"/actions/{other['action']}/done", {"done_on": str(DONE)})
    made = await program.planned()
    await program.ask("PUT", f"/actions/{made['action']}/done", {"done_on": str(DONE)})
    result = (await program.ask("PUT", f"/actions/{made['action']}/closed"))["result"]
    assert result["controls"] == [f"control-{number}" for number in range(1, 5)]
    assert (result["guarded"], result["net"]) == (False, None)


async def test_what_is_no_plan_is_refused_by_field(program: Program) -> None:
    for field, value in (
        ("site", "nowhere"),
        ("touchpoint", "touchpoint-none"),
        ("title", " "),
        ("owner", ""),
        ("remeasure_on", str(DONE + timedelta(days=6))),
        ("alert", "alert-none"),
    ):
        assert (await program.planned(status=422, **{field: value}))["parameter"] == field
    made = await program.planned()
    for day in (TODAY + timedelta(days=1), TODAY - timedelta(days=6)):
        body = {"done_on": str(day)}
        refused = await program.ask("PUT", f"/actions/{made['action']}/done", body, status=422)
        assert refused["parameter"] == "done_on"
    assert (await program.ask("POST", "/touchpoints", {"name": "Check-out"}, status=409))[
        "code"
    ] == "name_taken"


async def test_visitors_are_told_what_was_done_and_nothing_that_was_not(program: Program) -> None:
    made = await program.planned()
    path = f"/actions/{made['action']}/told"
    told = {"sv": "Ni sa: kö. Vi öppnade en kassa till.", "en": "You said: queues. We hired."}
    body = {"told": told, "published": True}
    assert (await program.ask("PUT", path, body, status=409))["code"] == "conflict"
    assert (await program.ask("PUT", path, {"told": told}))["published_at"] is None
    await program.ask("PUT", f"/actions/{made['action']}/done", {"done_on": str(DONE)})
    published = await program.ask("PUT", path, body)
    assert (published["told"], published["published_at"] is not None) == (told, True)
    for wrong in ({"fi": "x"}, {"en": "x" * 501}, {}):
        refused = await program.ask("PUT", path, {"told": wrong, "published": True}, status=422)
        assert refused["parameter"] == "told"
    assert (await program.ask("PUT", path, {"told": told}))["published_at"] is None


async def test_an_alert_is_taken_and_done_through_the_api(program: Program) -> None:
    await answered(program.people, "own-site")
    await program.people.owner.execute(
        "insert into opinion_alerts (organisation_id, ref, site_id, spot_id, cause, questionnaire, "
        "question, raised_at, since, n, bad, expected, p, false_alarms_per_week, filter_version) "
        "select organisation_id, 'alert-a', site_id, id, 'dissatisfaction', 0, 0, $1, $1, 9, 8, 1, "
        "0, 0.5, 1 from spots",
        NOW - timedelta(minutes=30),
    )
    assert [a["state"] for a in (await program.ask("GET", "/feedback-alerts"))["data"]] == ["open"]
    path = "/feedback-alerts/alert-a"
    assert (await program.ask("PUT", f"{path}/outcome", {"outcome": "x"}, status=409))[
        "code"
    ] == "conflict"
    taken = await program.ask("PUT", f"{path}/assignee", {"assignee": "Bo"})
    assert (taken["state"], taken["assignee"], taken["minutes_to_take"]) == ("taken", "Bo", 30)
    done = await program.ask("PUT", f"{path}/outcome", {"outcome": "opened a till"})
    assert (done["state"], done["outcome"], done["minutes_to_act"]) == ("done", "opened a till", 30)
    assert (await program.ask("GET", "/feedback-alerts?open=true"))["data"] == []
    await program.ask("PUT", "/alarm-settings", {"false_alarms_per_week": 30}, status=422)
    await program.ask("PUT", "/alarm-settings", {"false_alarms_per_week": 2})
    assert await program.ask("GET", "/alarm-settings") == {"false_alarms_per_week": 2}
