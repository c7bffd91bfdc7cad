"""Surveys on one's own phone: from the desk to the visitor and back, against the database."""

import asyncio
import base64
import json
import re
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from scipy.stats import binomtest

from server.feedback import tokens
from server.feedback.battery import Battery, ItemKind
from server.people.roles import Grant, Role
from tests.integration.people_world import NOW, People, form_of, load, post
from tests.integration.survey_world import LANGUAGES, Counter, Phone, battery, counter, path_of

pytestmark = pytest.mark.services
__all__ = ["counter"]


async def test_a_survey_over_the_budget_is_refused_with_its_sum(counter: Counter) -> None:
    content = msgspec.to_builtins(battery())
    for item in content["items"]:
        item["text"] = dict.fromkeys(LANGUAGES, "w" * 150)
    problem = await counter.ask(
        "POST", "/surveys", {"name": "Long", "content": content}, status=422
    )
    assert (problem["code"], problem["parameter"]) == ("bad_value", "items")
    assert "the limit is 55 s" in problem["detail"]
    assert await counter.people.owner.fetchval("select count(*) from surveys") == 0


async def test_a_version_is_made_once_and_asked_only_once_it_is_published(
    counter: Counter,
) -> None:
    ref = await counter.survey()
    again = {"name": "Visit", "content": msgspec.to_builtins(battery())}
    assert (await counter.ask("POST", "/surveys", again, status=201))["survey"] == ref
    other = await counter.ask(
        *("POST", "/surveys", {**again, "content": msgspec.to_builtins(battery("Two"))}), status=201
    )
    assert (other["number"], other["state"]) == (2, "draft")
    body = {"survey": other["survey"], "site": "own-site", "channel": "link"}
    assert (await counter.ask("POST", "/survey-tokens", body, status=409))["code"] == "conflict"
    await counter.ask("PATCH", f"/surveys/{ref}", {"state": "closed"})
    back = await counter.ask("PATCH", f"/surveys/{ref}", {"state": "published"}, status=409)
    assert back["code"] == "conflict"


async def test_a_visitor_answers_once_and_only_hashes_and_masked_words_are_kept(
    counter: Counter,
) -> None:
    owner = counter.people.owner
    (token,) = await counter.tokens(await counter.survey(), touchpoint="Till 3")
    phone = Phone(counter.people)
    status, html = await phone.open(path_of(token["url"]))
    assert status == 200
    assert "The shop reads it weekly." in html
    assert "Till 3" in html
    form = phone.filled(4, words="My name is Ada Byron, call me on 070-123 45 67")
    counter.people.clock.advance(31)
    status, first = await phone.send(form)
    assert (status, await phone.send(form)) == (200, (200, first))
    status, text = await phone.send({**form, "overall": "1"})
    assert status == 409
    assert 'data-code="answered_already"' in text
    status, text = await phone.open(path_of(token["url"]))
    assert status == 409
    assert 'data-code="answered_already"' in text
    (row,) = await owner.fetch("select * from survey_answers")
    assert row["words"] == "My name is [name], call me on [phone]"
    assert (row["seconds"], row["locale"], row["touchpoint"]) == (31, "en", "Till 3")
    assert json.loads(row["answers"])["overall"] == 8
    assert len(row["seen"]) == 8
    assert set(json.loads(row["answers"])) == set(row["seen"]) - {"words"}
    everything = str(await owner.fetch("select t::text from survey_tokens t")) + str(row)
    secret = token["url"].rsplit("/", 1)[1]
    for hidden in (secret, secret[:16], token["code"], "Ada", "127.0.0.1", "aiohttp"):
        assert hidden not in everything


async def test_a_typed_code_leads_to_the_same_survey_and_counts_as_its_token(
    counter: Counter,
) -> None:
    (token,) = await counter.tokens(await counter.survey())
    phone = Phone(counter.people)
    status, _ = await phone.open("/s?code=" + token["code"].lower())
    assert status == 200
    assert phone.path == "/s/" + token["code"].replace("-", "")
    assert (await phone.send(phone.filled(3)))[0] == 200
    assert (await phone.open(path_of(token["url"])))[0] == 409
    wrong = ("3" if token["code"][0] != "3" else "4") + token["code"][1:]
    status, html = await phone.open("/s?code=" + wrong)
    assert status == 422
    assert 'data-code="mistyped_code"' in html


async def test_each_refusal_is_a_page_that_says_why(counter: Counter) -> None:
    people, survey = counter.people, await counter.survey()
    good, late = await counter.tokens(survey, count=2, days=1)
    phone = Phone(people)
    forged = path_of(good["url"])[:-1] + ("2" if good["url"][-1] != "2" else "3")
    for path, status, code in (
        (forged, 404, "unknown_code"),
        ("/s/" + "2" * 24, 404, "unknown_code"),
        ("/s/hello", 422, "mistyped_code"),
    ):
        assert (await phone.open(path))[0] == status
        assert f'data-code="{code}"' in phone.html
    await phone.open(path_of(good["url"]))
    form = phone.filled(3)
    hidden, html = {name: form[name] for name in ("sheet", "l")}, ""
    for wrong, code in (
        (hidden, "nothing_answered"),
        ({**form, "overall": "11"}, "bad_answer"),
        ({**form, "sheet": "x"}, "stale_form"),
    ):
        status, html = await phone.send(wrong)
        assert status == 422, code
        assert 'role="alert"' in html
    assert "checked" in html  # what was answered is still there
    assert (await phone.send(form))[0] == 200
    people.clock.advance(2 * 86400)
    assert (await phone.open(path_of(late["url"])))[0] == 410
    (last,) = await counter.tokens(survey)
    await counter.ask("PATCH", f"/surveys/{survey}", {"state": "closed"})
    assert (await phone.open(path_of(last["url"])))[0] == 410
    assert 'data-code="closed_survey"' in phone.html
    assert await people.owner.fetchval("select count(*) from survey_answers") == 1


async def test_who_tries_many_wrong_codes_waits_and_nothing_of_it_is_stored(
    counter: Counter,
) -> None:
    phone = Phone(counter.people)
    seen = [(await phone.open("/s/" + "2" * 24))[0] for _ in range(23)]
    assert seen[0] == 404
    assert seen[-1] == 429
    counter.people.clock.advance(61)
    assert (await phone.open("/s/" + "2" * 24))[0] == 404


async def test_no_page_sets_or_needs_a_cookie_or_lets_its_address_out(counter: Counter) -> None:
    (token,) = await counter.tokens(await counter.survey())
    phone = Phone(counter.people)
    for path in ("/s", path_of(token["url"]), "/s/hello"):
        await phone.open(path)
        assert "Set-Cookie" not in phone.headers
        assert phone.headers["Referrer-Policy"] == "no-referrer"
        assert phone.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in phone.headers["Content-Security-Policy"]
        assert "unsafe" not in phone.headers["Content-Security-Policy"]
    await phone.open(path_of(token["url"]))
    assert (await phone.send(phone.filled(5)))[0] == 200
    assert "Set-Cookie" not in phone.headers
    assert len(phone.browser.cookie_jar) == 0


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_page_speaks_the_readers_language(counter: Counter, language: str) -> None:
    (token,) = await counter.tokens(await counter.survey())
    phone = Phone(counter.people, language)
    _, html = await phone.open(path_of(token["url"]))
    assert battery().title[language] in html
    assert f'<html lang="{language}">' in html
    assert (await phone.send(phone.filled(2)))[0] == 200
    stored = await counter.people.owner.fetchval("select locale from survey_answers")
    assert stored == language


async def test_a_poster_is_answered_by_many_limited_by_the_hour_and_never_summed_with_receipts(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "POSTER_PER_HOUR", 3)
    survey = await counter.survey()
    (poster,) = await counter.tokens(survey, channel="poster", days=300)
    await counter.answers(survey, [5, 5])
    statuses, phone = [], Phone(counter.people)
    for _ in range(4):
        await phone.open(path_of(poster["url"]))
        form = phone.filled(1)
        statuses.append((await phone.send(form))[0])
    assert statuses == [200, 200, 200, 429]
    counter.people.clock.advance(3600)
    await phone.open(path_of(poster["url"]))
    form = phone.filled(1)
    assert (await phone.send(form))[0] == (await phone.send(form))[0] == 200  # sent twice: one
    found = await counter.ask("GET", f"/surveys/{survey}/results")
    by = {(row["way"], row["factor"]): row for row in found["data"]}
    assert (by["poster", "staff"]["n"], by["poster", "staff"]["value"]) == (4, 1)
    assert (by["one-time", "staff"]["n"], by["one-time", "staff"]["value"]) == (2, 5)
    assert by["poster", ""]["channels"] == ["poster"]
    assert by["one-time", ""]["channels"] == ["receipt"]


async def test_employees_and_audits_never_count_among_visitors(counter: Counter) -> None:
    refs = {each: await counter.survey(each) for each in ("visitors", "employees", "journey audit")}
    assert len(set(refs.values())) == 3
    await counter.answers(refs["visitors"], [4, 5, 4, 5, 4])
    before = await counter.ask("GET", f"/surveys/{refs['visitors']}/results")
    kiosks = await counter.ask("GET", "/feedback?from=2026-03-01&to=2026-04-03")
    await counter.answers(refs["employees"], [1] * 6)
    await counter.answers(refs["journey audit"], [1] * 3)
    assert await counter.ask("GET", f"/surveys/{refs['visitors']}/results") == before
    assert {row["population"] for row in before["data"]} == {"visitors"}
    staff = await counter.ask("GET", f"/surveys/{refs['employees']}/results")
    assert staff["population"] == "employees"
    assert {row["value"] for row in staff["data"] if row["measure"] == "factor"} == {1}
    audit = await counter.ask("GET", f"/surveys/{refs['journey audit']}/results")
    assert all(row["hidden"] and row["value"] is None for row in audit["data"])  # three people
    assert await counter.ask("GET", "/feedback?from=2026-03-01&to=2026-04-03") == kiosks


async def test_results_name_n_interval_seconds_and_hide_groups_below_five(
    counter: Counter,
) -> None:
    survey = await counter.survey()
    await counter.answers(survey, [1, 2, 4, 4, 4, 4, 4, 4])  # odd: seldom
    whole = await counter.ask("GET", f"/surveys/{survey}/results")
    overall = whole["data"][0]
    assert (overall["measure"], overall["n"], overall["value"]) == ("overall", 8, 6.75)
    assert 0 <= overall["low"] < overall["value"] < overall["high"] <= 10
    assert whole["seconds"] == {"median": 0, "p90": 0, "n": 8, "estimate": True}
    assert (whole["locales"], whole["pooled_locales"]) == ({"en": 8}, False)
    parted = await counter.ask("GET", f"/surveys/{survey}/results?by=came")
    assert {row["group"]: row["hidden"] for row in parted["data"]} == {
        "Sällan": True,
        "Ofta": True,  # or one would be told by subtraction
    }
    bad = await counter.ask("GET", f"/surveys/{survey}/results?by=words", status=400)
    assert bad["parameter"] == "by"
    drivers = await counter.ask("GET", f"/surveys/{survey}/drivers")
    assert (drivers["refused"], drivers["n"], drivers["data"]) == ("too_few", 8, [])
    gone = await counter.ask("GET", f"/surveys/{survey}/results?site=nowhere", status=404)
    assert gone["code"] == "unknown_place"


async def test_a_few_colleagues_are_not_told_by_subtracting_a_part_from_the_whole(
    counter: Counter,
) -> None:
    await counter.people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'small', 'small', 'Europe/Stockholm'), ($1, 'big', 'big', 'Europe/Oslo')",
        counter.people.organisations["own"],
    )
    staff = await counter.survey("employees")
    for site, values in (("own-site", [4] * 6), ("small", [1] * 3), ("big", [5] * 8)):
        await counter.answers(staff, values, site=site)

    async def shown(asked: str) -> set[bool]:
        rows = (await counter.ask("GET", f"/surveys/{staff}/results{asked}"))["data"]
        return {not row["hidden"] for row in rows}

    assert await shown("") == {True}  # of seventeen
    assert await shown("?site=big") == {True}  # what is left are nine
    assert await shown("?site=small") == {False}
    assert await shown("?site=own-site") == {False}  # with the eight it would tell the three
    assert await shown("?site=own-site,big") == {False}
    assert await shown("?site=big&by=channel") == {False}
    parted = (await counter.ask("GET", f"/surveys/{staff}/results?by=site"))["data"]
    assert {row["group"] for row in parted if not row["hidden"]} == {"big"}
    await counter.people.owner.execute("update survey_answers set words = 'so there'")
    written = (await counter.ask("GET", f"/surveys/{staff}/words"))["data"]
    assert [row["site"] for row in written] == ["big"] * 8
    visitors = await counter.survey()
    await counter.answers(visitors, [4] * 2, site="small")
    await counter.answers(visitors, [4] * 2, site="big")
    rows = (await counter.ask("GET", f"/surveys/{visitors}/results?site=small"))["data"]
    assert not any(row["hidden"] for row in rows)


async def test_what_visitors_wrote_comes_in_pages_the_latest_first(counter: Counter) -> None:
    survey = await counter.survey()
    await counter.answers(survey, [1, 2, 3, 4, 5, 4, 3])
    await counter.people.owner.execute(
        "update survey_answers set words = case when id % 7 = 2 then '' else 'no. ' || id end, "
        "answered_at = answered_at - (id % 3) * interval '1 hour'"
    )
    path = f"/surveys/{survey}/words"
    whole = await counter.ask("GET", path)
    assert (len(whole["data"]), whole["next"]) == (6, None)
    order = [(row["at"], int(row["words"].removeprefix("no. "))) for row in whole["data"]]
    assert order == sorted(order, reverse=True)
    for limit in (1, 4, 6):
        paged: list[dict[str, Any]] = []
        asked: str | None = f"{path}?limit={limit}"
        while asked is not None:
            page = await counter.ask("GET", asked)
            assert len(page["data"]) <= limit
            paged += page["data"]
            asked = page["next"] and f"{path}?limit={limit}&cursor={page['next']}"
        assert paged == whole["data"]
    first = (await counter.ask("GET", f"{path}?limit=1"))["next"]
    raw = json.loads(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    forged = base64.urlsafe_b64encode(json.dumps([raw[0], "x", raw[2]]).encode()).decode()
    bad = await counter.ask("GET", f"{path}?cursor={forged.rstrip('=')}", status=400)
    assert bad["code"] == "bad_cursor"


async def test_how_a_few_colleagues_changed_their_minds_is_not_told(counter: Counter) -> None:
    staff = await counter.survey("employees")
    body = {"survey": staff, "site": "own-site", "name": "Before", "delay": "0"}
    first = (await counter.ask("POST", "/rounds", body, status=201))["round"]
    after = {**body, "name": "After", "follows": first}
    second = (await counter.ask("POST", "/rounds", after, status=201))["round"]
    await counter.answers(staff, [2] * 6, round=first, delay="0")
    await counter.answers(staff, [4] * 2, round=second, delay="0")
    rows = (await counter.ask("GET", f"/rounds/{second}/change"))["data"]
    assert [row["change"] for row in rows] == [None] * len(rows)
    assert {(row["n_before"], row["n_after"]) for row in rows} == {(6, 2)}
    await counter.answers(staff, [4] * 3, round=second, delay="0")
    rows = (await counter.ask("GET", f"/rounds/{second}/change"))["data"]
    assert [row["change"] for row in rows] == [pytest.approx(2)] * len(rows)


async def test_a_round_after_the_repair_is_held_against_the_one_before(counter: Counter) -> None:
    survey = await counter.survey()
    body = {"survey": survey, "site": "own-site", "name": "Before", "delay": "1-7 d"}
    first = (await counter.ask("POST", "/rounds", body, status=201))["round"]
    await counter.answers(survey, [2, 2, 3], round=first, delay="1-7 d")
    await counter.ask("DELETE", f"/rounds/{first}")
    second = (
        await counter.ask(
            "POST", "/rounds", {**body, "name": "After", "follows": first}, status=201
        )
    )["round"]
    await counter.answers(survey, [4, 4, 5], round=second, delay="1-7 d")
    found = await counter.ask("GET", f"/rounds/{second}/change")
    assert found["follows"] == first
    for row in found["data"]:
        assert row["change"] == pytest.approx(2)
        assert row["low"] < 2 < row["high"]
        assert (row["n_before"], row["n_after"]) == (3, 3)
    over = {"survey": survey, "site": "own-site", "channel": "link", "round": first}
    problem = await counter.ask("POST", "/survey-tokens", {**over, "delay": "1-7 d"}, status=422)
    assert problem["parameter"] == "round"
    assert (await counter.ask("GET", f"/rounds/{first}/change", status=404))["code"] == "not_found"


async def test_tokens_are_shown_once_and_their_qr_codes_hold_their_address(
    counter: Counter,
) -> None:
    survey = await counter.survey()
    body = {"survey": survey, "site": "own-site", "channel": "receipt", "count": 3, "qr": True}
    batch = await counter.ask("POST", "/survey-tokens", body)
    assert len({each["url"] for each in batch["tokens"]}) == 3
    assert all(each["qr"].startswith("<svg") for each in batch["tokens"])
    assert batch["expires_at"].startswith("2026-05-02T12:00")
    refused = await counter.ask(
        *("POST", "/survey-tokens", body), status=422, **{"Idempotency-Key": "a"}
    )
    assert refused["code"] == "bad_body"
    for wrong, field in (
        ({"count": 0}, "count"),
        ({"count": 1001, "qr": False}, "count"),
        ({"channel": "poster", "count": 2}, "count"),
        ({"days": 1e30}, "days"),
        ({"days": 401}, "days"),
        ({"touchpoint": "t" * 61}, "touchpoint"),
        ({"site": "other-site"}, "site"),
        ({"survey": "survey-x"}, "survey"),
        ({"round": "round-x"}, "round"),
    ):
        problem = await counter.ask("POST", "/survey-tokens", {**body, **wrong}, status=422)
        assert problem["parameter"] == field


async def test_the_thanks_show_what_the_site_did_about_earlier_answers(counter: Counter) -> None:
    owner, own = counter.people.owner, counter.people.organisations["own"]
    told = {"en": "You waited long: now a second till opens at five.", "sv": "Ny kassa."}
    for published in (NOW, None):
        await owner.execute(
            "with point as (insert into touchpoints (organisation_id, ref, name) "
            "values ($1, $2, $2) returning id) insert into actions (organisation_id, ref, site_id, "
            "touchpoint_id, title, owner, due_on, remeasure_on, told, published_at, made_at) "
            "select $1, $2, s.id, p.id, 'T', 'O', $3, $4, $5, $6, $7 from sites s, point p "
            "where s.ref = 'own-site'",
            *(own, f"point-{published is None}", NOW.date(), NOW.date() + timedelta(days=9)),
            *(json.dumps(told if published else {"en": "A secret plan."}), published, NOW),
        )
    (token,) = await counter.tokens(await counter.survey())
    phone = Phone(counter.people)
    await phone.open(path_of(token["url"]))
    _, html = await phone.send(phone.filled(4))
    assert "You waited long: now a second till opens at five." in html
    assert "A secret plan." not in html


async def test_no_role_but_the_desk_reads_tokens_and_none_changes_an_answer(
    people: People,
) -> None:
    for role, table, right, allowed in (
        ("vestibule_api", "survey_tokens", "select", False),
        ("vestibule_ingest", "survey_tokens", "select", False),
        ("vestibule_desk", "survey_answers", "update", False),
        ("vestibule_desk", "survey_answers", "delete", False),
        ("vestibule_desk", "survey_tokens", "delete", False),
        ("vestibule_api", "survey_answers", "select", True),
    ):
        found = await people.owner.fetchval(
            "select has_table_privilege($1, $2, $3)", role, table, right
        )
        assert found is allowed, (role, table, right)
    async with people.desk.acquire() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("update surveys set content = ''")


# -- the portal ----------------------------------------------------------------------------------


BUILT = {
    "name": "Visit",
    "population": "visitors",
    "shown": "5",
    "title_en": "Your visit",
    "why_en": "It is read each week.",
    "factor1_en": "Staff",
    "action1": "train",
    "all_en": "All in all?",
    "item1_en": "I felt welcome.",
    "of1": "1",
    "words_en": "Anything else?",
}


async def test_the_portal_builds_publishes_hands_out_and_shows_scores_with_their_interval(
    counter: Counter,
) -> None:
    people = counter.people
    await people.analyst()
    browser = await people.signed_in()
    hidden = await form_of(browser, "/surveys/new")
    long = {f"item{n}_en": "w" * 160 for n in range(1, 7)} | {f"of{n}": "1" for n in range(1, 7)}
    refused = await post(browser, "/surveys/new", {**hidden, **BUILT, **long, "do": "keep"})
    assert refused.status == 422
    assert "the limit is 55 s" in await refused.text()
    counted = await post(browser, "/surveys/new", {**hidden, **BUILT, "do": "count"})
    assert (counted.status, '<span id="seconds">' in await counted.text()) == (200, True)
    made = await post(browser, "/surveys/new", {**hidden, **BUILT, "do": "keep"})
    assert made.status == 303, await made.text()
    page = made.headers["Location"]
    assert (await post(browser, page, {**hidden, "to": "published"})).status == 303
    form = {**hidden, "site": "own-site", "channel": "receipt", "count": "6", "days": "30"}
    handed = await post(browser, f"{page}/tokens", form)
    paths = re.findall(r'href="http[^"]+(/s/[A-Z0-9]{24})"', await handed.text())
    assert len(paths) == 6
    for number, path in enumerate(paths):
        phone = Phone(people)
        await phone.open(path)
        await phone.send(phone.filled(3 + number % 2, words="Call Bo at 070-123 45 67"))
    _, html = await load(browser, page)
    assert 'data-way="one-time"' in html
    assert 'data-way="poster"' not in html
    row = html[html.index('data-factor="factor1"') :]
    assert re.sub(r"\s+", " ", row[: row.index("</tr>")]).startswith(
        'data-factor="factor1"><th scope="row">Staff</th> <td class="n">3.5</td> <td>2.93–4.07'
    )
    assert "an estimate: 6 of 200 answers" in html
    assert 'data-refused="too_few"' in html
    assert "Call Bo at [phone]" in html
    assert "070" not in html
    poster = await post(browser, f"{page}/tokens", {**form, "channel": "poster", "count": "1"})
    assert '<section class="card poster"' in await poster.text()
    for wrong in ({"channel": "smoke"}, {"delay": "x"}, {"count": "0"}, {"site": "other-site"}):
        assert (await post(browser, f"{page}/tokens", {**form, **wrong})).status == 422
    assert (await post(browser, page, {**hidden, "to": "burnt"})).status == 422


async def test_who_sees_one_site_reads_its_answers_alone_and_asks_nobody(counter: Counter) -> None:
    people, own = counter.people, counter.people.organisations["own"]
    site = await people.owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'second-site', 'Second', 'Europe/Stockholm') returning id",
        own,
    )
    survey = await counter.survey()
    await counter.answers(survey, [1, 1, 1], site="own-site")
    await counter.answers(survey, [5, 5], site="second-site")
    await people.user("mia@example.com", Grant(Role.STORE_MANAGER, own, None, site))
    browser = await people.signed_in("mia@example.com")
    _, html = await load(browser, f"/surveys/{survey}")
    assert "2 answers" in html
    assert '<td class="n">5</td>' in html
    assert "Publish" not in html
    assert (await load(browser, "/surveys/new"))[0] == 404
    hidden = await form_of(browser, "/surveys")
    form = {**hidden, "site": "second-site", "channel": "link"}
    assert (await post(browser, f"/surveys/{survey}/tokens", form)).status == 404
    assert (await post(browser, f"/surveys/{survey}", {**hidden, "to": "closed"})).status == 404


async def test_of_two_answers_with_one_token_at_the_same_moment_one_is_stored(
    counter: Counter,
) -> None:
    (token,) = await counter.tokens(await counter.survey())
    phones = [Phone(counter.people) for _ in range(4)]
    for phone in phones:
        await phone.open(path_of(token["url"]))
    sent = [phone.send(phone.filled(value)) for value, phone in enumerate(phones, 1)]
    statuses = sorted(status for status, _ in await asyncio.gather(*sent))
    assert statuses == [200, 409, 409, 409]
    assert await counter.people.owner.fetchval("select count(*) from survey_answers") == 1


async def test_a_choices_shares_stand_with_interval_and_n_where_their_group_is_shown(
    counter: Counter,
) -> None:
    survey = await counter.survey()
    await counter.answers(survey, [1, 2, 3, 4, 5, 1, 3])
    await counter.answers(survey, [2], channel="poster")
    found = await counter.ask("GET", f"/surveys/{survey}/results")
    told = [(each["way"], each["item"], each["option"], each["chosen"], each["n"])
            for each in found["choices"]]  # fmt: skip
    assert told == [
        *(("one-time", "came", 0, 2, 7), ("one-time", "came", 1, 5, 7)),
        *(("poster", "came", 0, 1, 1), ("poster", "came", 1, 0, 1)),
    ]
    for each in found["choices"]:
        interval = binomtest(each["chosen"], each["n"]).proportion_ci(method="wilson")
        assert each["share"] == each["chosen"] / each["n"]
        assert each["low"] == pytest.approx(interval.low)
        assert each["high"] == pytest.approx(interval.high)
    by = await counter.ask("GET", f"/surveys/{survey}/results?by=came")
    assert by["choices"] == []  # two said "often": so few are shown neither apart nor by the rest
    staff = await counter.survey("employees", "At work")
    await counter.answers(staff, [1, 2, 3, 4])
    assert (await counter.ask("GET", f"/surveys/{staff}/results"))["choices"] == []
    await counter.answers(staff, [5])
    assert len((await counter.ask("GET", f"/surveys/{staff}/results"))["choices"]) == 2


async def test_the_builder_makes_choices_line_by_line_and_refuses_what_a_language_lacks(
    counter: Counter,
) -> None:
    people = counter.people
    await people.analyst()
    browser = await people.signed_in()
    form = await form_of(browser, "/surveys/new") | {
        "do": "keep", "name": "Chosen", "population": "visitors", "shown": "5",
        **{f"{name}_{code}": f"{name} {code}" for code in ("sv", "en")
           for name in ("title", "why", "factor1", "all", "item1", "choice2")},
        "of1": "1",
        "options2_sv": "Ofta\r\n\r\n  Ibland \r\nSällan", "options2_en": "Often\nAt times",
    }  # fmt: skip
    refused = await post(browser, "/surveys/new", form)
    assert (refused.status, "choice2" in (await refused.text()).split('id="problem"')[1]) == (
        422,
        True,
    )
    made = await post(browser, "/surveys/new", form | {"options2_en": "Often\nAt times\nSeldom"})
    assert made.status == 303
    content = await people.owner.fetchval("select content from surveys")
    (choice,) = msgspec.json.decode(content, type=Battery).of(ItemKind.CHOICE)
    assert choice.options == [
        {"sv": "Ofta", "en": "Often"},
        {"sv": "Ibland", "en": "At times"},
        {"sv": "Sällan", "en": "Seldom"},
    ]
