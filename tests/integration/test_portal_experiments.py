"""The portal's experiments and trends: who sees them, and what they say."""

import re
from datetime import date, datetime, timedelta
from html import unescape

import pytest
from aiohttp import ClientSession

from server.people.roles import Grant, Role
from tests.integration.chain_world import ChainOf
from tests.integration.people_world import HTML, NOW, People, form_of, load

pytestmark = pytest.mark.services

START = date(2026, 4, 6)
YEAR = timedelta(weeks=52)
BEFORE = START - timedelta(weeks=14)
END = START + timedelta(weeks=8)


@pytest.fixture
async def chain(people: People) -> ChainOf:
    own = people.organisations["own"]
    await people.owner.execute("delete from sites")
    found = ChainOf(people.owner, own)
    await found.open(12, since=BEFORE - YEAR)
    await found.history(BEFORE - YEAR, START - YEAR)
    await found.history(BEFORE, START, seed=4)
    await people.analyst()
    return found


async def send(browser: ClientSession, path: str, form: list[tuple[str, str]]) -> tuple[int, str]:
    async with browser.post(path, data=form, headers=HTML, allow_redirects=False) as response:
        return response.status, response.headers.get("Location", await response.text())


def fields(csrf: str, **changed: str) -> list[tuple[str, str]]:
    values = {
        "name": "Ny skylt",
        "metric": "visits",
        "starts_on": str(START),
        "weeks": "8",
        "pre_weeks": "12",
        "do": "keep",
    }
    return [("csrf", csrf), *{**values, **changed}.items()]


async def test_an_experiment_is_designed_sealed_and_decided_on_pages(
    people: People, chain: ChainOf
) -> None:
    browser = await people.signed_in()
    csrf = (await form_of(browser, "/experiments/new"))["csrf"]
    sites = [("site", ref) for ref in chain.spots]
    status, page = await send(browser, "/experiments", [*fields(csrf, do="plan"), *sites])
    assert status == 200
    assert re.search(r"±[\d.]+ %", page)
    assert page.count("<tr><th scope") - 1 == 6
    assert not await people.owner.fetchval("select exists (select from experiments)")
    status, page = await send(browser, "/experiments", [*fields(csrf), *sites[:10]])
    assert (status, "the least p is 0.0625" in page) == (422, True)
    assert page.count("checked") == 11, "what was chosen is still chosen"
    status, path = await send(browser, "/experiments", [*fields(csrf), *sites])
    assert status == 303

    _, page = await load(browser, path)
    version = re.findall(r'name="version" value="(\w+)"', page)[0]
    act = [("csrf", csrf), ("version", version)]
    assert (await send(browser, path, [*act, ("do", "seal")]))[0] == 303
    assert (await send(browser, path, [*act, ("do", "seal")]))[0] == 422, "seen is old"
    _, page = await load(browser, path)
    assert re.search(r'id="commitment"[^>]*>[0-9a-f]{64}<', page)
    assert page.count(">treated<") == 6
    assert "No decision before 2026-06-01" in page
    assert 'class="effect"' not in page
    treated = re.findall(r'data-site="([^"]+)">[^<]*<span', page)
    status, page = await send(browser, "/experiments", [*fields(csrf, name="Zwei"), *sites])
    assert (status, "is in the experiment Ny skylt" in page) == (422, True)

    await chain.history(START, END, effects=dict.fromkeys(treated, 1.1), seed=5)
    people.clock.advance(
        (datetime.combine(END + timedelta(days=1), NOW.time(), NOW.tzinfo) - NOW).total_seconds()
    )
    browser = await people.signed_in()
    csrf = (await form_of(browser, "/experiments/new"))["csrf"]
    _, page = await load(browser, path)
    assert 'data-standing="difference"' in page
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    share = r"\+(\d+(?:\.\d)?)"
    change = re.search(rf"{share} %\s+most likely {share} % – {share} %", text)
    assert change is not None
    low, high = float(change[2]), float(change[3])
    assert low - 2 <= 10 <= high + 2, "the draw is a real one: 1 interval in 20 misses it"
    assert "p = 0.031" in text
    version = re.findall(r'name="version" value="(\w+)"', page)[0]
    done = [("csrf", csrf), ("version", version), ("do", "kept"), ("note", "överallt")]
    assert (await send(browser, path, done))[0] == 303
    _, page = await load(browser, path)
    assert "The treatment was kept: överallt" in page
    assert re.search(r'id="seed"[^>]*>[0-9a-f]{64}<', page)
    _, page = await load(browser, "/experiments?q=ÖVERALLT")
    assert "Ny skylt" in page
    assert re.search(r"2026</th>\s*<td class=\"n\">1</td>", page)


async def test_trends_show_a_year_before_gaps_and_the_chain(people: People, chain: ChainOf) -> None:
    refs = list(chain.spots)
    dark = START - timedelta(weeks=3)
    await people.owner.execute(
        "delete from rollup_day where spot = $1 and day >= $2 and day < $2 + 7",
        *(chain.spots[refs[2]], dark),
    )
    browser = await people.signed_in()
    _, page = await load(browser, f"/trends?site={refs[2]}&weeks=13")
    assert page.count('data-cell="whole"') == 12
    assert page.count('data-cell="gap"') == 1
    assert 'id="ranks"' in page
    assert page.count("<tr data-site=") == 12
    async with browser.get(f"/trends/chart.json?site={refs[2]}&weeks=13", headers=HTML) as response:
        drawn = await response.json()
    assert [each is None for each in drawn["now"]] == [each == 11 for each in range(13)]
    assert all(drawn["before"])
    assert [band[2] for band in drawn["bands"]] == ["gap"]
    async with browser.get("/trends/funnel.json", headers=HTML) as response:
        funnel = await response.json()
    assert len(funnel["values"]) == 12
    assert funnel["events"] == sorted(funnel["events"])
    assert funnel["upper95"][0] > funnel["upper95"][-1] > 0, "the funnel closes"
    sums = await people.owner.fetchval(
        "select sum(open_in0) from rollup_day where day >= $1 and day < $1 + 7",
        START - timedelta(weeks=2),
    )
    async with browser.get("/trends/chart.json?weeks=13", headers=HTML) as response:
        together = await response.json()
    assert together["now"][12] == sums
    for measure in ("conversion", "smileys"):
        _, page = await load(browser, f"/trends?measure={measure}&metric={measure}")
        assert "Sites are compared once five of them" in page
        assert "Nothing was measured in these weeks" in page


async def test_who_sees_some_sites_sees_nothing_that_counts_all(
    people: People, chain: ChainOf
) -> None:
    refs, own = list(chain.spots), people.organisations["own"]
    row = await people.owner.fetchval("select id from sites where ref = $1", refs[4])
    await people.user("one@example.com", Grant(Role.STORE_MANAGER, own, site=row))
    browser = await people.signed_in("one@example.com")
    _, page = await load(browser, "/trends")
    assert f'value="{refs[4]}" selected' in page
    assert not any(ref in page for ref in refs if ref != refs[4])
    assert 'href="/experiments"' not in page
    assert "All sites" not in page
    assert 'id="chain"' not in page
    for path in (
        *(f"/trends?site={refs[0]}", f"/trends/chart.json?site={refs[0]}", "/trends/funnel.json"),
        *("/experiments", "/experiments/new", "/experiments/experiment-x"),
    ):
        assert (await load(browser, path))[0] == 404, path
    async with browser.get("/trends/chart.json?weeks=13", headers=HTML) as response:
        alone = await response.json()
    visits = await people.owner.fetchval(
        "select sum(open_in0) from rollup_day where spot = $3 and day >= $1 and day < $2",
        *(START - timedelta(weeks=2), START - timedelta(weeks=1), chain.spots[refs[4]]),
    )
    assert alone["now"][12] == visits, "the only site that is theirs"
    csrf = (await form_of(browser, "/account"))["csrf"]
    assert (await send(browser, "/experiments", fields(csrf)))[0] == 404


async def test_a_manager_of_all_reads_experiments_and_runs_none(
    people: People, chain: ChainOf
) -> None:
    own = people.organisations["own"]
    await people.user("all@example.com", Grant(Role.STORE_MANAGER, own))
    browser = await people.signed_in("all@example.com")
    status, page = await load(browser, "/experiments")
    assert (status, "/experiments/new" in page) == (200, False)
    assert (await load(browser, "/experiments/new"))[0] == 404
    csrf = (await form_of(browser, "/account"))["csrf"]
    assert (await send(browser, "/experiments", fields(csrf)))[0] == 404
