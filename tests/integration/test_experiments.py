"""Experiments from design to register, and sites compared: over HTTP, against the database."""

import asyncio
import hashlib
import json
import math
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import product
from typing import Any

import asyncpg
import pytest

from server.api.keys import create_api_key
from tests.integration.chain_world import ChainOf
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services

START = date(2026, 4, 6)
BEFORE = START - timedelta(weeks=13)
END = START + timedelta(weeks=8)
WANTED: dict[str, Any] = {"name": "Ny skylt", "metrics": ["visits"], "starts_on": "2026-04-06"}


@dataclass
class Trials:
    """A chain of 14 sites, with a program's key that may run experiments."""

    people: People
    chain: ChainOf
    key: str

    async def ask(
        self, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key or self.key}", "If-Match": "*"}
        browser = self.people.browser()
        async with browser.request(method, f"/v1{path}", json=body, headers=headers) as response:
            return response.status, json.loads(await response.text())

    async def done(self, method: str, path: str, body: object = None) -> Any:
        status, answer = await self.ask(method, path, body)
        assert status in (200, 201), answer
        return answer

    async def refused(self, method: str, path: str, body: object = None) -> tuple[str, str]:
        """Return code and sentence of a refusal."""
        status, answer = await self.ask(method, path, body)
        assert status >= 400, answer
        return answer["code"], answer["detail"]

    async def sealed(self, **wanted: object) -> Any:
        made = await self.done("POST", "/experiments", {**WANTED, **wanted})
        return await self.done("PATCH", f"/experiments/{made['experiment']}", {"to": "sealed"})

    def later(self, to: datetime) -> None:
        """Let time pass: what follows is asked then."""
        self.people.clock.advance((to - self.people.now).total_seconds())


@pytest.fixture
async def trials(people: People) -> Trials:
    own = people.organisations["own"]
    await people.owner.execute("delete from sites")
    chain = ChainOf(people.owner, own)
    await chain.open(14, since=BEFORE)
    await chain.history(BEFORE, START)
    key = await create_api_key(people.owner, own, scopes=("read", "experiments:write"))
    return Trials(people, chain, key)


def treated(record: Any) -> set[str]:
    return {pair["treated"] for pair in record["pairs"]}


async def test_an_experiment_from_design_to_the_register(trials: Trials) -> None:
    planned = await trials.done("POST", "/experiments:plan", WANTED)
    assert len(planned["pairs"]) == 7
    [found] = planned["planned"]
    assert 0.001 < found["detectable"] < 0.05
    levels = trials.chain.levels
    for pair in planned["pairs"]:
        assert 0.9 < levels[pair["first"]] / levels[pair["second"]] < 1.1, "alike before"

    made = await trials.done("POST", "/experiments", WANTED)
    assert (made["state"], made["commitment"]) == ("design", None)
    assert [pair["treated"] for pair in made["pairs"]] == [None] * 7
    ref = made["experiment"]
    assert (await trials.refused("GET", f"/experiments/{ref}/result"))[0] == "wrong_state"
    sealed = await trials.done("PATCH", f"/experiments/{ref}", {"to": "sealed"})
    assert (sealed["state"], sealed["seed"]) == ("sealed", None)
    assert all(pair["treated"] in (pair["first"], pair["second"]) for pair in sealed["pairs"])

    early = await trials.done("GET", f"/experiments/{ref}/result")
    assert early["standing"] == "no_decision_early"
    assert early["metrics"] == []
    code, why = await trials.refused(
        "PATCH", f"/experiments/{ref}", {"to": "decided", "decision": "kept"}
    )
    assert (code, str(END) in why) == ("look_too_early", True)

    await trials.chain.history(START, END, effects=dict.fromkeys(treated(sealed), 1.06), seed=2)
    trials.later(NOW + timedelta(weeks=4))
    assert (await trials.done("GET", f"/experiments/{ref}"))["state"] == "running"
    assert (await trials.done("GET", f"/experiments/{ref}/result"))["metrics"] == []
    trials.later(datetime.combine(END, NOW.time(), NOW.tzinfo) + timedelta(days=1))
    result = await trials.done("GET", f"/experiments/{ref}/result")
    assert result["standing"] == "difference"
    [effect] = result["metrics"]
    assert effect["pairs"] == 7
    assert effect["low"] - 0.02 < 0.06 < effect["high"] + 0.02, "1 interval in 20 misses it"
    assert effect["p"] == 2 / 2**7

    decided = await trials.done(
        "PATCH",
        f"/experiments/{ref}",
        {"to": "decided", "decision": "kept", "note": "alla butiker"},
    )
    assert decided["state"] == "decided"
    demand_fair_draw(decided)
    kept = await trials.done("GET", f"/experiments/{ref}/snapshot")
    assert kept["sha256"] == hashlib.sha256(kept["snapshot"].encode()).hexdigest()
    assert kept["sha256"] == decided["snapshot_sha256"]
    change, p = recomputed(decided, json.loads(kept["snapshot"]))
    assert effect["change"] == pytest.approx(change, abs=1e-6)
    assert effect["p"] == pytest.approx(p)

    await trials.people.owner.execute("update rollup_day set in0 = 1, open_in0 = 1")
    assert await trials.done("GET", f"/experiments/{ref}/result") == result, "it was kept"
    for column in ("decision = 'dropped'", "result = '{}'", "snapshot = ''", "seed = sha256('')"):
        with pytest.raises(asyncpg.CheckViolationError):
            await trials.people.owner.execute(f"update experiments set {column}")

    [row] = (await trials.done("GET", "/experiments?q=SKYLT&state=decided"))["data"]
    assert (row["experiment"], row["decision"], row["p"]) == (ref, "kept", effect["p"])
    assert (await trials.done("GET", "/experiments?q=100%25"))["data"] == []
    [year] = (await trials.done("GET", "/experiments:learning"))["data"]
    assert year == {"year": 2026, "begun": 1, "decided": 1, "kept": 1}
    acts = await trials.people.owner.fetch("select act from audit where subject = $1", ref)
    assert [f"experiment {act}" for act in ("designed", "sealed", "decided")] == [
        row["act"] for row in acts
    ]


def demand_fair_draw(decided: Any) -> None:
    """Recompute seal and coins from what was shown, with a hash alone."""
    seed, design = decided["seed"], decided["design"]
    text = f"{seed}\n{decided['sealed_at']}\n{design}"
    assert hashlib.sha256(text.encode()).hexdigest() == decided["commitment"]
    for number, pair in enumerate(json.loads(design)["pairs"]):
        coin = hashlib.sha256(f"{seed}\n{number}\n{design}".encode()).digest()[0] & 1
        assert decided["pairs"][number]["treated"] == pair[coin]


def recomputed(decided: Any, snapshot: Any) -> tuple[float, float]:
    """Return change and p of the snapshot, plainly."""
    differences = []
    for pair in decided["pairs"]:
        one = pair["treated"]
        other = pair["second"] if one == pair["first"] else pair["first"]
        gaps = [
            math.log(a["visits"][0] / b["visits"][0])
            for a, b in zip(
                snapshot["sites"][one]["weeks"], snapshot["sites"][other]["weeks"], strict=True
            )
        ]
        differences.append(sum(gaps[12:]) / 8 - sum(gaps[:12]) / 12)
    n = len(differences)
    least = abs(sum(differences)) - 1e-12
    signs = list(product((1, -1), repeat=n))
    large = sum(
        abs(sum(s * d for s, d in zip(f, differences, strict=True))) >= least for f in signs
    )
    return math.expm1(sum(differences) / n), large / len(signs)


async def test_what_cannot_be_decided_is_refused_and_says_why(trials: Trials) -> None:
    refs = list(trials.chain.spots)
    code, why = await trials.refused("POST", "/experiments", {**WANTED, "sites": refs[:11]})
    assert (code, "0.0625" in why, "6 are needed" in why) == ("too_few_pairs", True, True)
    code, why = await trials.refused(
        "POST", "/experiments:plan", {**WANTED, "sites": refs[:12], "metrics": ["visits", "atv"]}
    )
    assert (code, "0 pairs" in why) == ("too_few_pairs", True), "no site has sold anything"
    code, why = await trials.refused("POST", "/experiments", {**WANTED, "metrics": ["footfall"]})
    assert (code, "conversion" in why) == ("unknown_metric", True)
    for field, value in (
        ("starts_on", "2026-04-07"),
        ("starts_on", "2027-04-05"),
        ("weeks", 1),
        ("pre_weeks", 11),
        ("name", " "),
        ("sites", [refs[0]] * 12),
        ("metrics", []),
    ):
        code, _ = await trials.refused("POST", "/experiments", {**WANTED, field: value})
        assert code == "bad_value", field
    code, _ = await trials.refused("POST", "/experiments", {**WANTED, "starts_on": "2026-03-30"})
    assert code == "starts_too_soon"
    other = await create_api_key(trials.people.owner, trials.people.organisations["own"])
    status, answer = await trials.ask("POST", "/experiments", WANTED, key=other)
    assert (status, answer["code"]) == (403, "missing_scope")
    assert not await trials.people.owner.fetchval("select exists (select from experiments)")

    waiting = await trials.done("POST", "/experiments", {**WANTED, "sites": refs[:12]})
    first = await trials.sealed(sites=refs[:12])
    code, why = await trials.refused("POST", "/experiments", {**WANTED, "starts_on": "2026-05-25"})
    assert (code, first["experiment"] in why) == ("sites_overlap", True)
    path = f"/experiments/{waiting['experiment']}"
    assert (await trials.refused("PATCH", path, {"to": "sealed"}))[0] == "sites_overlap"
    assert (await trials.done("POST", "/experiments", {**WANTED, "starts_on": "2026-06-01"}))[
        "state"
    ] == "design", "the day after the other's last"
    mine = f"/experiments/{first['experiment']}"
    assert (await trials.refused("PATCH", mine, {"to": "sealed"}))[0] == "wrong_state"
    assert (await trials.refused("PATCH", mine, {"to": "decided"}))[0] == "bad_value"
    assert (await trials.refused("PATCH", mine, {"to": "running"}))[0] == "bad_value"
    code, why = await trials.refused("PATCH", mine, {"to": "archived"})
    assert (code, "why" in why) == ("bad_value", True)
    gone = await trials.done("PATCH", mine, {"to": "archived", "note": "kedjan såldes"})
    demand_fair_draw(gone)
    assert (await trials.done("PATCH", path, {"to": "sealed"}))["state"] == "sealed", "now free"
    trials.later(NOW + timedelta(days=4))
    late = await trials.refused("POST", "/experiments", {**WANTED, "starts_on": "2026-04-06"})
    assert late[0] == "starts_too_soon"


async def test_a_pair_is_left_out_for_what_happened_at_one_of_its_sites(trials: Trials) -> None:
    sealed = await trials.sealed()
    pairs = [(pair["first"], pair["second"]) for pair in sealed["pairs"]]
    dark = {(pairs[0][0], START + timedelta(days=21 + n)): 0.0 for n in range(7)}
    dim = {(pairs[1][1], START + timedelta(days=n)): 0.94 for n in range(56)}
    await trials.chain.history(START, END, coverage={**dark, **dim}, seed=3)
    await trials.people.owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, factor, valid) "
        "values ($1, $2, 0, 1.1, tstzrange('2026-05-01', null))",
        *(trials.chain.organisation, trials.chain.spots[pairs[2][0]]),
    )
    trials.later(datetime.combine(END, NOW.time(), NOW.tzinfo) + timedelta(days=1))
    result = await trials.done("GET", f"/experiments/{sealed['experiment']}/result")
    assert {(out["first"], out["second"]): out["reason"] for out in result["left_out"]} == {
        pairs[0]: "outage",
        pairs[1]: "coverage_unequal",
        pairs[2]: "topology_changed",
    }
    assert result["standing"] == "no_decision_too_few_pairs"
    assert result["metrics"][0]["pairs"] == 4
    assert result["metrics"][0]["low"] is None


async def test_two_metrics_share_one_error_rate(trials: Trials) -> None:
    owner, own = trials.people.owner, trials.people.organisations["own"]
    await owner.execute(
        "insert into transactions (organisation_id, site_id, transaction_ref, at, amount) "
        "select $1, s.id, s.ref || d || n, d + n * interval '9 minutes', "
        "100 + ((n * 37 + s.id * 11 + extract(doy from d)::int * 13) % 61) from sites s, "
        "generate_series('2026-01-05 09:00Z'::timestamptz, '2026-05-31', '1 day') d, "
        "generate_series(1, 20) n where s.organisation_id = $1",
        own,
    )
    sealed = await trials.sealed(metrics=["visits", "conversion", "atv"])
    assert [each["metric"] for each in sealed["planned"]] == ["visits", "conversion", "atv"]
    assert all(each["detectable"] is not None for each in sealed["planned"])
    await trials.chain.history(START, END, effects=dict.fromkeys(treated(sealed), 1.2), seed=2)
    trials.later(datetime.combine(END, NOW.time(), NOW.tzinfo) + timedelta(days=1))
    result = await trials.done("GET", f"/experiments/{sealed['experiment']}/result")
    visits, conversion, atv = result["metrics"]
    assert visits["change"] == pytest.approx(0.2, abs=0.02)
    assert conversion["change"] == pytest.approx(1 / 1.2 - 1, abs=0.02)
    assert visits["p"] == 2 / 2**7
    assert visits["adjusted_p"] == pytest.approx(3 * visits["p"])
    assert atv["low"] - 0.02 <= 0 <= atv["high"] + 0.02
    assert result["standing"] == "difference"


async def test_nobody_experiments_with_sites_of_another_or_sees_a_seed(trials: Trials) -> None:
    people = trials.people
    theirs = ChainOf(people.owner, people.organisations["other"])
    await theirs.open(12, since=BEFORE)
    sites = [*list(trials.chain.spots)[:12], next(iter(theirs.spots))]
    code, why = await trials.refused("POST", "/experiments", {**WANTED, "sites": sites})
    assert (code, next(iter(theirs.spots)) in why) == ("unknown_place", True)
    sealed = await trials.sealed()
    assert not set(theirs.spots) & {
        p[side] for p in sealed["pairs"] for side in ("first", "second")
    }
    key = await create_api_key(
        people.owner, people.organisations["other"], scopes=("read", "experiments:write")
    )
    for method, path, body in (
        ("GET", f"/experiments/{sealed['experiment']}", None),
        ("PATCH", f"/experiments/{sealed['experiment']}", {"to": "archived", "note": "x"}),
    ):
        status, answer = await trials.ask(method, path, body, key=key)
        assert (status, answer["code"]) == (404, "not_found")
    status, answer = await trials.ask("GET", "/experiments", key=key)
    assert answer["data"] == []
    assert (await trials.ask("GET", "/experiments:learning", key=key))[1]["data"] == []
    assert (await trials.ask("GET", "/experiments:learning"))[1]["data"] == [], "not begun yet"
    trials.later(NOW + timedelta(days=5))
    assert (await trials.ask("GET", "/experiments:learning"))[1]["data"] != []
    assert (await trials.ask("GET", "/experiments:learning", key=key))[1]["data"] == []
    _, answer = await trials.ask("GET", "/comparison?from=2026-01-05&to=2026-03-30", key=key)
    assert (answer["code"], answer["detail"][:7]) == ("too_few_sites", "0 sites")
    readable = "select has_column_privilege('vestibule_api', 'experiments', $1, 'select')"
    assert await people.owner.fetchval(readable, "commitment")
    assert not await people.owner.fetchval(readable, "seed")


async def test_two_who_seal_at_once_draw_once(trials: Trials) -> None:
    made = await trials.done("POST", "/experiments", WANTED)
    path = f"/experiments/{made['experiment']}"
    answers = await asyncio.gather(*(trials.ask("PATCH", path, {"to": "sealed"}) for _ in range(3)))
    assert sorted(status for status, _ in answers) == [200, 409, 409]
    [sealed] = [answer for status, answer in answers if status == 200]
    assert (await trials.done("GET", path))["commitment"] == sealed["commitment"]


async def test_sites_rank_only_where_their_intervals_part(trials: Trials) -> None:
    people, refs = trials.people, list(trials.chain.spots)
    year = timedelta(weeks=52)
    await people.owner.execute("update assignments set valid = tstzrange('2024-12-01', null)")
    since, until = START - timedelta(weeks=12), START
    await people.owner.execute("truncate rollup_day")
    await trials.chain.history(since - year, until - year, seed=7, noise=0.03)
    await trials.chain.history(
        since,
        until,
        seed=8,
        noise=0.03,
        effects={**dict.fromkeys(refs, 1.05), refs[3]: 1.4, refs[6]: 0.7},
        coverage={(refs[9], since + timedelta(days=n)): 0.3 for n in range(66)},
    )
    await people.owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, factor, valid) "
        "values ($1, $2, 0, 1.1, tstzrange('2026-02-01', null))",
        *(trials.chain.organisation, trials.chain.spots[refs[1]]),
    )
    found = await trials.done("GET", f"/comparison?from={since}&to={until}")
    rows = {row["site"]: row for row in found["data"]}
    assert (rows[refs[3]]["rank"], rows[refs[3]]["outside"]) == ("1", "above")
    assert (rows[refs[6]]["rank"], rows[refs[6]]["outside"]) == ("12", "below")
    assert rows[refs[3]]["low"] < 1.4 / 1.05 - 1 < rows[refs[3]]["high"]
    others = [row for ref, row in rows.items() if ref not in (refs[3], refs[6])]
    assert {row["rank"] for row in others} == {"2–11"}
    assert {row["outside"] for row in others} == {None}
    assert found["left_out"] == [
        {"site": refs[1], "reason": "topology_changed"},
        {"site": refs[9], "reason": "too_few_weeks"},
    ]
    async with people.browser().get(
        f"/v1/comparison?from={since}&to={until}&format=csv",
        headers={"Authorization": f"Bearer {trials.key}"},
    ) as response:
        lines = (await response.text()).splitlines()
    assert lines[0].startswith("site,name,weeks,events,difference,low,high")
    assert len(lines) == 13
    code, why = await trials.refused("GET", f"/comparison?measure=smileys&from={since}&to={until}")
    assert (code, "5 are needed" in why) == ("too_few_sites", True)
    code, _ = await trials.refused("GET", "/comparison?from=2024-01-01&to=2026-01-01")
    assert code == "range_too_long"
    assert (await trials.refused("GET", "/comparison?from=x&to=2026-01-01"))[0] == "bad_parameter"
