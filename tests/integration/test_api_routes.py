"""The API as its caller meets it: keys, parameters, pages, formats, problems."""

import csv
import io
import json
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from openapi_spec_validator import validate

from server.api.keys import RateLimit
from server.api.problems import TooManyError
from server.api.routes import ACTS, READS, build_api
from server.insight.pos import import_pos
from tests.integration.api_world import World, utc

pytestmark = pytest.mark.services

RANGE = "from=2026-03-03&to=2026-03-05"
PATHS = (
    "/sites",
    "/sites/site",
    "/spots",
    "/devices",
    f"/counts?{RANGE}",
    f"/feedback?{RANGE}",
    f"/conversion?{RANGE}",
    f"/gaps?{RANGE}",
)


async def shop(world: World) -> int:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site")
    spot = await world.spot(organisation, site, "spot")
    await world.quarter(spot, utc("2026-03-03T10:00"), 40, 30)
    return spot


@pytest.mark.parametrize("path", PATHS)
async def test_every_route_answers_and_needs_a_key(world: World, path: str) -> None:
    await shop(world)
    assert await world.get(path)
    status, problem = await world.ask(path, organisation="")
    assert (status, problem["code"]) == (401, "not_signed_in")
    assert problem["detail"]
    assert problem["explanation"]
    assert problem["request_id"]


@pytest.mark.parametrize(
    "header",
    ["Bearer vk_aaaaaaaa_" + "a" * 43, "Bearer nonsense", "Basic eDp5", "Bearer vk__", ""],
)
async def test_a_wrong_key_is_refused(world: World, header: str) -> None:
    await shop(world)
    async with world.client.get("/v1/sites", headers={"Authorization": header}) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_key_with_another_secret_and_a_revoked_one_are_refused(world: World) -> None:
    await shop(world)
    good = world.keys["own"]
    world.keys["own"] = good[:-1] + ("A" if good[-1] != "A" else "B")
    assert (await world.ask("/sites"))[0] == 401
    world.keys["own"] = good
    assert (await world.ask("/sites"))[0] == 200
    await world.owner.execute("update api_keys set revoked_at = now()")
    assert (await world.ask("/sites"))[0] == 401


async def test_an_address_that_fails_too_often_waits_and_good_keys_pass(world: World) -> None:
    await shop(world)
    await world.organisation("other")
    assert (await world.ask("/sites"))[0] == 200
    guess = {"Authorization": "Bearer vk_aaaaaaaa_" + "a" * 43}
    for _ in range(30):
        assert (await world.ask("/sites", organisation="", **guess))[0] == 401
    async with world.client.get("/v1/sites", headers=guess) as response:
        problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["code"]) == (429, "too_many_requests")
        assert response.headers["Retry-After"] == "2"
    assert (await world.ask("/sites"))[0] == 200  # good before, whoever else is at its address
    assert (await world.ask("/sites", organisation="other"))[0] == 429
    world.clock.advance(2)
    assert (await world.ask("/sites", organisation="other"))[0] == 200


async def test_a_key_without_the_scope_is_told_so(world: World) -> None:
    await shop(world)
    await world.owner.execute("update api_keys set scopes = '{}'")
    status, problem = await world.ask("/sites")
    assert (status, problem["code"]) == (403, "missing_scope")


async def test_a_key_is_stored_as_its_hash_only(world: World) -> None:
    await shop(world)
    stored = await world.owner.fetchval("select to_jsonb(api_keys)::text from api_keys")
    assert world.keys["own"].split("_", 2)[2] not in stored


async def test_a_signed_in_page_may_ask_without_a_key(world: World) -> None:
    await shop(world)
    number = await world.owner.fetchval("select id from organisations")

    async def me(request: web.Request) -> tuple[int, str] | None:
        return (number, "user me") if request.cookies.get("who") == "me" else None

    app = web.Application()
    app.add_subapp(
        "/v1/",
        build_api(
            pool=world.api,
            clock=world.clock,
            identify=me,
        ),
    )
    url = "/v1/sites"
    signed_in = {"who": "me"}
    async with (
        TestClient(TestServer(app)) as client,
        client.get(url, cookies=signed_in) as response,
        client.get(url) as other,
    ):
        assert [row["site"] for row in (await response.json())["data"]] == ["site"]
        assert other.status == 401


@pytest.mark.parametrize(
    ("query", "code", "parameter"),
    [
        ("from=2026-03-03", "bad_parameter", "to"),
        ("from=2026-03-05&to=2026-03-03", "bad_parameter", "to"),
        ("from=yesterday&to=2026-03-03", "bad_parameter", "from"),
        ("from=0001-01-01&to=2026-03-03", "bad_parameter", "from"),
        (f"{RANGE}&bucket=fortnight", "bad_parameter", "bucket"),
        (f"{RANGE}&scope=some", "bad_parameter", "scope"),
        (f"{RANGE}&limit=0", "bad_parameter", "limit"),
        (f"{RANGE}&limit=ten", "bad_parameter", "limit"),
        (f"{RANGE}&bucket=day&bucket=hour", "bad_parameter", "bucket"),
        (f"{RANGE}&buckets=day", "unknown_parameter", "buckets"),
        (f"{RANGE}&organisation=2", "unknown_parameter", "organisation"),
        (f"{RANGE}&cursor=abc", "bad_cursor", "cursor"),
        (f"{RANGE}&cursor=%00%ff", "bad_cursor", "cursor"),
        (f"{RANGE}&format=xml", "bad_parameter", "format"),
        (f"{RANGE}&format=null", "bad_parameter", "format"),
        ("from=2026-03-03T00:00+01:00&to=2026-03-05", "bad_parameter", "from"),
    ],
)
async def test_a_bad_parameter_is_named(
    world: World, query: str, code: str, parameter: str
) -> None:
    await shop(world)
    status, problem = await world.ask(f"/counts?{query}")
    assert (status, problem["code"], problem["parameter"]) == (400, code, parameter)
    assert "Traceback" not in json.dumps(problem)


async def test_a_range_too_long_is_refused(world: World) -> None:
    await shop(world)
    status, problem = await world.ask("/counts?from=2020-01-01&to=2026-01-01&bucket=1m")
    assert (status, problem["code"]) == (422, "range_too_long")


async def test_an_unknown_place_and_an_unknown_route_are_404(world: World) -> None:
    await shop(world)
    for path, code in (
        ("/sites/nowhere", "unknown_place"),
        (f"/counts?{RANGE}&site=nowhere", "unknown_place"),
        (f"/counts?{RANGE}&spot=nowhere", "unknown_place"),
        ("/nonsense", "not_found"),
    ):
        status, problem = await world.ask(path)
        assert (status, problem["code"]) == (404, code), path
    async with world.client.post("/v1/counts") as response:
        assert response.status == 405
        assert (await response.json(content_type=None))["code"] == "method_not_allowed"
        assert "GET" in response.headers["Allow"]


@pytest.mark.parametrize("sites", ["site=", "site=shop,", "site=shop&site="])
async def test_an_empty_name_is_not_taken_for_all(world: World, sites: str) -> None:
    await shop(world)
    status, problem = await world.ask(f"/counts?{RANGE}&{sites}")
    assert (status, problem["code"]) == (400, "bad_parameter")


async def test_a_cursor_belongs_to_its_question(world: World) -> None:
    await shop(world)
    page = await world.get(f"/counts?{RANGE}&limit=1")
    status, problem = await world.ask(
        f"/counts?from=2026-03-02&to=2026-03-05&limit=1&cursor={page['next']}"
    )
    assert (status, problem["code"]) == (400, "bad_cursor")


async def test_an_answer_that_is_known_is_304(world: World) -> None:
    spot = await shop(world)
    key = {"Authorization": f"Bearer {world.keys['own']}"}
    url = f"/v1/counts?{RANGE}"
    async with world.client.get(url, headers=key) as response:
        etag = response.headers["ETag"]
    async with world.client.get(url, headers={**key, "If-None-Match": etag}) as response:
        assert response.status == 304
        assert await response.read() == b""
    await world.quarter(spot, utc("2026-03-03T11:00"), 1)
    async with world.client.get(url, headers={**key, "If-None-Match": etag}) as response:
        assert response.status == 200
        assert response.headers["ETag"] != etag


async def test_csv_has_the_same_columns_and_an_empty_cell_for_missing(world: World) -> None:
    await shop(world)
    answer = await world.get(f"/counts?{RANGE}")
    key = {"Authorization": f"Bearer {world.keys['own']}"}
    for url, headers in (
        (f"/v1/counts?{RANGE}&format=csv", key),
        (f"/v1/counts?{RANGE}", {**key, "Accept": "text/csv"}),
    ):
        async with world.client.get(url, headers=headers) as response:
            assert response.content_type == "text/csv"
            rows = list(csv.DictReader(io.StringIO(await response.text())))
        assert [*rows[0]] == [*answer["data"][0]]
        assert [row["visits"] for row in rows] == ["40", ""]
    async with world.client.get("/v1/gaps?" + RANGE + "&format=csv", headers=key) as response:
        assert (await response.text()).startswith("id,site,spot,device,from,until,reason")


async def test_text_that_a_spreadsheet_would_run_is_made_harmless(world: World) -> None:
    await shop(world)
    await world.owner.execute("update sites set name = '=1+1'")
    key = {"Authorization": f"Bearer {world.keys['own']}"}
    async with world.client.get("/v1/sites?format=csv", headers=key) as response:
        assert "site,'=1+1,Europe" in await response.text()
    assert (await world.get("/sites"))["data"][0]["name"] == "=1+1"


async def test_lists_are_paged_by_reference(world: World) -> None:
    organisation = await world.organisation("own")
    for number in range(5):
        await world.site(organisation, f"site-{number}")
    found: list[str] = []
    path = "/sites?limit=2"
    while True:
        page = await world.get(path)
        found += [row["site"] for row in page["data"]]
        if page["next"] is None:
            break
        path = f"/sites?limit=2&cursor={page['next']}"
    assert found == [f"site-{number}" for number in range(5)]


async def test_a_device_shows_what_it_stored_and_where_it_stands(world: World) -> None:
    await shop(world)
    (device,) = (await world.get("/devices"))["data"]
    assert (device["device"], device["spot"], device["site"]) == ("device-spot", "spot", "site")
    assert device["stored_to"] == "2026-04-02T12:00:00Z"


async def test_feedback_has_n_distribution_and_index(world: World) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(600, 1200))
    spot = await world.spot(organisation, site, "kiosk", kind="kiosk")
    await world.presses(
        spot, utc("2026-03-03T10:00"), {0: 126, 1: 60, 2: 16, 3: 17}, questionnaire=0
    )
    await world.presses(spot, utc("2026-03-03T05:00"), {0: 5}, questionnaire=0)
    await world.quarter(spot, utc("2026-03-04T10:00"), 0)
    for derived in (False, True):
        for size in ("15m", "hour", "day", "week"):
            answer = await world.get(f"/feedback?{RANGE}&bucket={size}&scope=open")
            (row,) = [row for row in answer["data"] if row["n"]]
            assert (row["n"], row["answers"]) == (219, [126, 60, 16, 17])
            assert row["index"] == pytest.approx(78.23, abs=0.01)
            assert row["low"] < row["index"] < row["high"]
            assert (row["basis"], row["kind"]) == ("raw", "smiley4")
        days = (await world.get(f"/feedback?{RANGE}&by=spot"))["data"]
        assert [row["n"] for row in days] == [224, 0]
        if not derived:
            await world.derive()
    before = (await world.get("/feedback?from=2026-03-01&to=2026-03-03"))["data"]
    assert [(row["n"], row["question"]) for row in before] == [(None, None)] * 2


async def test_a_questionnaire_gives_its_answers_their_meaning(world: World) -> None:
    organisation = await world.organisation("own")
    spot = await world.spot(
        organisation, await world.site(organisation, "site"), "kiosk", kind="kiosk"
    )
    await world.presses(spot, utc("2026-03-03T10:00"), {3: 395, 8: 476, 10: 291}, questionnaire=-5)
    path = f"/feedback?{RANGE}"
    unknown = (await world.get(path))["data"][0]
    assert (unknown["n"], unknown["kind"], unknown["index"]) == (1162, None, None)
    assert unknown["questionnaire"] == "fffffffffffffffb"
    await world.owner.execute(
        "insert into questionnaires (organisation_id, hash, name, definition) "
        """values ($1, -5, 'x', '{"questions": [{"kind": "nps", "text": "?"}]}')""",
        organisation,
    )
    known = (await world.get(path))["data"][0]
    assert (known["kind"], round(known["index"], 2)) == ("nps", -8.95)


async def test_sales_are_imported_once_and_give_conversion(world: World, tmp_path: Path) -> None:
    spot = await shop(world)
    await world.quarter(spot, utc("2026-03-04T22:45"), 20)
    path = tmp_path / "sales.csv"
    path.write_text(
        "site,transaction,at,kind,amount,units\n"
        + "".join(f"site,A{n},2026-03-03T12:{n:02},sale,100.50,2\n" for n in range(10))
        + "site,B1,2026-03-03T13:00,return,-50,1\nsite,B2,2026-03-03T13:00,pickup,10,1\n"
        + "site,B3,2026-03-03T13:00,sale,0,1\nsite,C1,2026-03-04T23:50,sale,10,1\n"
    )
    dry = await import_pos(world.dsn_owner, path, dry_run=True)
    assert (dry.inserted, dry.refused) == (14, False)
    assert await world.owner.fetchval("select count(*) from transactions") == 0
    first = await import_pos(world.dsn_owner, path, dry_run=False)
    again = await import_pos(world.dsn_owner, path, dry_run=False)
    assert (first.inserted, again.inserted, again.replaced, again.unchanged) == (14, 0, 0, 14)
    path.write_text(
        path.read_text().replace("A0,2026-03-03T12:00,sale", "A0,2026-03-03T12:00,void")
    )
    assert (await import_pos(world.dsn_owner, path, dry_run=False)).replaced == 1
    one, two = (await world.get(f"/conversion?{RANGE}"))["data"]
    assert (one["transactions"], one["pickups"], one["returns"]) == (9, 1, 1)
    assert (one["visits"], one["conversion"], one["atv"], one["upt"]) == (40, 9 / 40, 100.5, 2)
    assert one["spv"] == pytest.approx(one["conversion"] * one["atv"])
    assert (two["visits"], two["transactions"]) == (20, 1)
    assert one["currency"] == "SEK"


async def test_a_file_with_a_bad_row_changes_nothing_unless_told_to_skip(
    world: World, tmp_path: Path
) -> None:
    await shop(world)
    path = tmp_path / "sales.csv"
    path.write_text(
        "site,transaction,at,kind,amount,units\n"
        "site,A1,2026-03-03T12:00,sale,1,1\nsite,A2,2026-03-29T02:30,sale,1,1\n"
    )
    report = await import_pos(world.dsn_owner, path, dry_run=False)
    assert (report.refused, [issue.line for issue in report.errors]) == (True, [3])
    assert "line 3" in "\n".join(report.lines())
    assert await world.owner.fetchval("select count(*) from transactions") == 0
    assert (await import_pos(world.dsn_owner, path, dry_run=False, skip_bad=True)).inserted == 1
    other = await import_pos(world.dsn_owner, path, dry_run=True, organisation="other")
    assert "no site 'site'" in other.errors[0].message


async def test_gaps_say_what_is_missing_and_why(world: World) -> None:
    spot = await shop(world)
    for start in ("'2026-03-03T10:00Z'", "null", "'2026-01-01T10:00Z'"):
        await world.owner.execute(
            "insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, "
            "from_at, until_at, reason, counts) select organisation_id, device_id, $1, $1, 1, 2, "
            f"{start}::timestamptz, {start}::timestamptz + interval '1 hour', 'rotted', "
            "'{7,2,0,0,0,0,0,0}' from assignments",
            spot,
        )
    gaps = (await world.get(f"/gaps?{RANGE}"))["data"]
    assert [(gap["from"], gap["visits"], gap["exits"]) for gap in gaps] == [
        ("2026-03-03T10:00:00Z", 7, 2),
        (None, 7, 2),
    ]
    assert all(gap["explanation"] for gap in gaps)
    pages = [await world.get(f"/gaps?{RANGE}&limit=1")]
    pages.append(await world.get(f"/gaps?{RANGE}&limit=1&cursor={pages[0]['next']}"))
    assert [gap for page in pages for gap in page["data"]] == gaps


async def test_the_document_is_valid_and_holds_every_route(world: World) -> None:
    async with world.client.get("/v1/openapi.json") as response:
        document = await response.json()
    validate(document)
    assert document["openapi"].startswith("3.1")
    served = {route.path for route in READS} | {route.path for route in ACTS}
    assert set(document["paths"]) == served
    mounted = {
        resource.canonical.removeprefix("/v1")
        for resource in world.client.app.router.resources()
        for resource in resource._app.router.resources()  # type: ignore[attr-defined]
    }
    assert mounted == served | {"/openapi.json", "/docs"}


async def test_answers_are_as_the_document_says(world: World) -> None:
    from jsonschema import Draft202012Validator

    spot = await shop(world)
    await world.presses(spot, utc("2026-03-03T10:00"), {0: 3})
    async with world.client.get("/v1/openapi.json") as response:
        document = await response.json()
    for path in PATHS:
        route = path.split("?")[0].replace("/sites/site", "/sites/{ref}")
        schema = document["paths"][route]["get"]["responses"]["200"]["content"]
        whole = {**schema["application/json"]["schema"], "components": document["components"]}
        Draft202012Validator(whole).validate(await world.get(path))
    problem = {**document["components"]["schemas"]["Problem"]}
    Draft202012Validator(problem).validate((await world.ask("/counts"))[1])


async def test_the_page_needs_nothing_from_elsewhere(world: World) -> None:
    async with world.client.get("/v1/docs") as response:
        text = await response.text()
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text
    for route in READS:
        assert route.path in text


async def test_a_request_keeps_its_id(world: World) -> None:
    await shop(world)
    headers = {"X-Request-Id": "abc-12345"}
    async with world.client.get("/v1/sites", headers=headers) as response:
        assert response.headers["X-Request-Id"] == "abc-12345"
        assert (await response.json(content_type=None))["request_id"] == "abc-12345"
    async with world.client.get("/v1/sites", headers={"X-Request-Id": "a b<script>"}) as response:
        assert "<" not in response.headers["X-Request-Id"]


async def test_every_answer_says_what_the_rate_leaves_and_when_to_come_back(world: World) -> None:
    await shop(world)
    app = web.Application()
    app.add_subapp("/v1/", build_api(pool=world.api, clock=world.clock, per_s=1, burst=2))
    key = {"Authorization": f"Bearer {world.keys['own']}"}
    async with TestClient(TestServer(app)) as client:

        async def asked(path: str) -> tuple[int, str | None, str | None]:
            async with client.get(path, headers=key) as response:
                assert response.headers["RateLimit-Policy"] == '"key";q=2;w=2'
                headers = response.headers
                return response.status, headers["RateLimit"], headers.get("Retry-After")

        assert await asked("/v1/sites") == (200, '"key";r=1;t=1', None)
        assert await asked("/v1/sites/none") == (404, '"key";r=0;t=2', None)
        assert await asked("/v1/sites") == (429, '"key";r=0;t=2', "1")
        world.clock.advance(1)
        assert await asked("/v1/sites") == (200, '"key";r=0;t=2', None)
        async with client.get("/v1/sites") as response:  # nobody has no rate
            assert "RateLimit" not in response.headers


def test_a_bucket_of_tokens_refills_and_never_overflows() -> None:
    now = [0.0]
    limit = RateLimit(per_s=2, burst=3, monotonic=lambda: now[0])
    for _ in range(3):
        limit.take("a")
    with pytest.raises(TooManyError):
        limit.take("a")
    limit.take("b")
    now[0] = 1000
    for _ in range(3):
        limit.take("a")
    with pytest.raises(TooManyError) as caught:
        limit.take("a")
    assert caught.value.wait_s == pytest.approx(0.5)


async def test_a_database_that_is_away_is_503(world: World) -> None:
    await shop(world)
    await world.api.close()
    status, problem = await world.ask("/sites")
    assert (status, problem["code"]) == (503, "database_away")
