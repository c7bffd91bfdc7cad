"""Every route of the application, asked with the names of another organisation's things.

Whatever belongs to another organisation is answered like what does not exist: through every part of
an address, filter, form field and act of a phone. A route that is in none of the tables below fails
the last test: whoever adds one says here what can be named through it.
"""

import json
import re

import pytest
from aiohttp import web

from tests.integration.isolation_world import (
    ABSENT,
    MARK,
    OWN,
    THEIRS,
    Asked,
    Fuzz,
    neutral,
    state_of,
)
from tests.integration.isolation_world import fuzz as fuzz
from tests.integration.people_world import HTML, NOW, People

pytestmark = pytest.mark.services
CONSOLE = "/console/o/{organisation}"
SITE = CONSOLE + "/sites/{site}"
RANGE = {"from": "2026-03-01", "to": "2026-03-05"}

GET: dict[str, Asked] = {
    "/feedback": Asked(),
    "/feedback/{site}": Asked(),
    "/": Asked(),
    "/sites/{site}": Asked({"day": "2026-04-01"}),
    "/sites/{site}/chart.json": Asked(),
    "/digest": Asked(),
    "/exports": Asked({"dataset": "kpis"}, {"site": "{site}"}),
    "/exports/file": Asked({"from": "2026-03-01", "to": "2026-03-04"}, {"site": "{site}"}),
    "/popups": Asked(),
    "/popups/{site}": Asked(),
    "/shop": Asked(),
    "/shop/{site}": Asked(),
    "/periods": Asked({"year": "2026"}, {"site": "{site}"}),
    "/targets": Asked({"over": "yes"}, {"site": "{site}"}),
    "/quality": Asked({"month": "2026-03"}, {"site": "{site}"}),
    "/trends": Asked({}, {"site": "{site}"}),
    "/trends/chart.json": Asked({}, {"site": "{site}"}),
    "/trends/funnel.json": Asked(),
    "/experiments": Asked({}, {"q": "{experiment}"}),
    "/experiments/new": Asked(),
    "/experiments/{experiment}": Asked(),
    "/accuracy": Asked(),
    "/accuracy/privacy": Asked(),
    "/accuracy/sign": Asked({"contact": "x"}),
    "/accuracy/sites/{site}": Asked(),
    "/accuracy/recount/{spot}": Asked(),
    "/account": Asked(),
    "/organisations": Asked(),
    "/console": Asked(),
    CONSOLE: Asked({}, {"region": "{region}", "q": "{site}"}),
    f"{CONSOLE}/sites": Asked(),
    SITE: Asked(),
    f"{CONSOLE}/devices": Asked({}, {"q": "{device}"}),
    CONSOLE + "/devices/{device}": Asked(),
    CONSOLE + "/devices/{device}/desired": Asked(),
    CONSOLE + "/devices/{device}/commands/{command}/file": Asked(),
    f"{CONSOLE}/now": Asked(),
    f"{CONSOLE}/incidents": Asked(),
    CONSOLE + "/incidents/{incident}": Asked(),
    f"{CONSOLE}/bulk": Asked({"do": "identify"}, {"q": 'device = "{device}"'}),
    f"{CONSOLE}/rollouts": Asked({}, {"before": "{rollout}"}),
    f"{CONSOLE}/rollouts/new": Asked(
        {"do": "look", "bundle": "bundle-common", "wave1": "rest"},
        {"segment": "{segment}", "q": 'device = "{device}"'},
    ),
    f"{CONSOLE}/rollouts/releases": Asked(),
    f"{CONSOLE}/rollouts/freezes": Asked({"past": "1"}),
    CONSOLE + "/rollouts/{rollout}": Asked(),
    CONSOLE + "/rollouts/{rollout}/devices": Asked({"state": "planned"}),
    f"{CONSOLE}/export": Asked(),
    f"{CONSOLE}/import": Asked(),
    f"{CONSOLE}/people": Asked(),
    f"{CONSOLE}/audit": Asked({"verify": "1"}, {"q": "{site}"}),
    "/console/unknown": Asked(),
    "/console/people": Asked(),
    "/console/audit": Asked(),
    "/tech": Asked({}, {"q": "{site}"}),
    "/tech/sites/{site}": Asked(),
    "/tech/sites/{site}/mount": Asked({}, {"spot": "{spot}", "replaces": "{device}"}),
    "/tech/sites/{site}/device": Asked({}, {"device": "{device}", "serial": "{device}"}),
    "/tech/claims/{claim}": Asked(),
    "/tech/claims/{claim}/sheet": Asked(),
    "/tech/walk": Asked({}, {"claim": "{claim}"}),
    "/tech/outbox": Asked(),
    "/tech/away": Asked(),
    "/tech/session": Asked(),
    "/v1/sites": Asked(),
    "/v1/sites/{ref:site}": Asked(),
    "/v1/spots": Asked({}, {"site": "{site}"}),
    "/v1/regions": Asked(),
    "/v1/regions/{ref:region}": Asked(),
    "/v1/sites/{ref:site}/record": Asked(),
    "/v1/doors/{ref:door}": Asked(),
    "/v1/spots/{ref:spot}": Asked(),
    "/v1/devices": Asked(
        {}, {"filter:x": 'device = "{device}" or site = "{site}"', "segment:x": "{segment}"}
    ),
    "/v1/device-fields": Asked(),
    "/v1/presence": Asked({}, {"site": "{site}"}),
    "/v1/devices/{ref:device}": Asked(),
    "/v1/devices/{ref:device}/events": Asked(),
    "/v1/devices/{ref:device}/metrics": Asked(RANGE),
    "/v1/stability": Asked(RANGE),
    "/v1/segments": Asked(),
    "/v1/segments/{ref:segment}": Asked(),
    "/v1/changes": Asked(),
    "/v1/settings": Asked(),
    "/v1/settings:table": Asked(),
    "/v1/settings:layers": Asked(),
    "/v1/models/{ref:model}/settings": Asked(),
    "/v1/sites/{ref:site}/settings": Asked(),
    "/v1/devices/{ref:device}/settings": Asked(),
    "/v1/devices/{ref:device}/configuration": Asked(),
    "/v1/commands": Asked({}, {"device": "{device}", "batch": "{batch}"}),
    "/v1/commands/{ref:command}": Asked(),
    "/v1/commands/{ref:command}/file": Asked(),
    "/v1/batches/{ref:batch}": Asked(),
    "/v1/incidents": Asked({}, {"site": "{site}"}),
    "/v1/incidents:ranked": Asked({}, {"site": "{site}"}),
    "/v1/incidents/{ref:incident}": Asked(),
    "/v1/incidents/{ref:incident}/why": Asked(),
    "/v1/releases": Asked(),
    "/v1/bundles": Asked(),
    "/v1/devices/{ref:device}/firmware": Asked(),
    "/v1/rollouts": Asked(),
    "/v1/rollouts/{ref:rollout}": Asked(),
    "/v1/rollouts/{ref:rollout}/plan": Asked(),
    "/v1/rollouts/{ref:rollout}/executions": Asked(
        {}, {"site:x": "{site}", "filter:x": 'device = "{device}" or site = "{site}"'}
    ),
    "/v1/rollouts/{ref:rollout}/history": Asked(),
    "/v1/rollouts/{ref:rollout}/why": Asked({}, {"device": "{device}"}),
    "/v1/freezes": Asked({"past": "true"}),
    "/v1/freezes/{ref:freeze}": Asked(),
    "/v1/health-windows": Asked(),
    "/v1/health-contacts": Asked(),
    "/v1/health-rules": Asked(),
    "/v1/notices": Asked(),
    "/v1/webhooks": Asked(),
    "/v1/webhooks/{ref:webhook}": Asked(),
    "/v1/webhooks/{ref:webhook}/deliveries": Asked(),
    "/v1/counts": Asked(RANGE, {"site": "{site}", "spot": "{spot}"}),
    "/v1/feedback": Asked(RANGE, {"site": "{site}", "spot": "{spot}"}),
    "/v1/response-rate": Asked(RANGE, {"site": "{site}", "spot": "{spot}"}),
    "/v1/feedback-alerts": Asked({}, {"site": "{site}"}),
    "/v1/alarm-settings": Asked(),
    "/v1/touchpoints": Asked(),
    "/v1/actions": Asked({}, {"site": "{site}"}),
    "/v1/conversion": Asked(RANGE, {"site": "{site}"}),
    "/v1/estimates": Asked(RANGE, {"site": "{site}", "spot": "{spot}"}),
    "/v1/occupancy": Asked(RANGE, {"site": "{site}"}),
    "/v1/gaps": Asked(RANGE, {"site": "{site}", "spot": "{spot}"}),
    "/v1/masks": Asked(RANGE, {"site": "{site}", "spot": "{spot}"}),
    "/v1/campaigns": Asked(),
    "/v1/rates": Asked(),
    "/v1/accuracy": Asked({}, {"site": "{site}"}),
    "/v1/recounts": Asked({}, {"site": "{site}"}),
    "/v1/tills": Asked({}, {"site": "{site}"}),
    "/v1/sales": Asked(RANGE, {"site": "{site}"}),
    "/v1/definitions": Asked(),
    "/v1/targets": Asked({}, {"site": "{site}"}),
    "/v1/targets/{ref:target}": Asked(),
    "/v1/experiments": Asked({}, {"q": "{experiment}"}),
    "/v1/experiments:learning": Asked(),
    "/v1/experiments/{ref:experiment}": Asked(),
    "/v1/experiments/{ref:experiment}/result": Asked(),
    "/v1/experiments/{ref:experiment}/snapshot": Asked(),
    "/v1/comparison": Asked(RANGE),
    "/v1/calendar": Asked(),
    "/v1/periods": Asked({"year": "2026"}),
    "/v1/questionnaires": Asked(),
    "/v1/questionnaires/{ref:questionnaire}": Asked(),
    "/v1/publications": Asked({}, {"site": "{site}"}),
    "/surveys": Asked(),
    "/surveys/new": Asked(),
    "/surveys/{survey}": Asked({"by": "site"}),
    "/surveys/{survey}/rounds": Asked(),
    "/v1/surveys": Asked(),
    "/v1/surveys/{ref:survey}": Asked(),
    "/v1/surveys/{ref:survey}/results": Asked({}, {"site": "{site}", "round": "{round}"}),
    "/v1/surveys/{ref:survey}/drivers": Asked(),
    "/v1/surveys/{ref:survey}/words": Asked(),
    "/v1/survey-offers": Asked({}, {"site": "{site}"}),
    "/v1/rounds": Asked(),
    "/v1/rounds/{ref:round}/change": Asked(),
}
FACTS = {"name": "A", "time_zone": "Europe/Oslo", "currency": "NOK", "version": "0"}
SPOT = {"name": "A", "kind": "counter", "purpose": "entrance", "version": "0"}
POST: dict[str, Asked] = {
    "/digest": Asked({"wanted": "no"}),
    "/periods": Asked(),
    "/targets": Asked(
        {"metric": "visits", "wanted": "x", "from": "2026-05-01", "to": "2026-06-01"},
        {"site": "{site}"},
    ),
    "/targets/{target}": Asked({"wanted": "5", "version": "0"}),
    "/feedback/touchpoints": Asked({"name": ""}),
    "/feedback/alerts/{alert}": Asked({"do": "done"}),
    "/feedback/actions/{action}": Asked({"do": "close"}),
    "/feedback/{site}/actions": Asked(
        {"title": "A", "owner": "A", "due_on": "2026-05-01", "remeasure_on": "2026-06-01"},
        {"touchpoint": "{touchpoint}", "alert": "{alert}"},
    ),
    "/experiments": Asked(
        {"do": "keep", "name": "A", "metric": "visits", "starts_on": "2026-04-06"},
        {"site": "{site}"},
    ),
    "/experiments/{experiment}": Asked({"do": "seal"}),
    "/organisations": Asked({}, {"organisation": "{organisation}"}),
    "/account/sessions/end": Asked({}, {"session": "{session}"}),
    "/console/organisations": Asked({"name": "A"}),
    CONSOLE: Asked({"name": "A", "version": "0"}),
    f"{CONSOLE}/regions": Asked({"name": ""}),
    CONSOLE + "/regions/{region}": Asked({"name": "A", "version": "0"}),
    f"{CONSOLE}/sites": Asked(FACTS, {"region": "{region}"}),
    SITE: Asked(FACTS, {"region": "{region}"}),
    f"{SITE}/doors": Asked({"name": "A"}, {"behind": "{door}"}),
    SITE + "/doors/{door}": Asked({"name": "A", "version": "0"}, {"behind": "{door}"}),
    f"{SITE}/spots": Asked(SPOT, {"door": "{door}"}),
    SITE + "/spots/{spot}": Asked(SPOT, {"door": "{door}"}),
    SITE + "/spots/{spot}/calibrate": Asked({"line": "9", "reason": "x"}),
    CONSOLE + "/devices/{device}/state": Asked({"to": "retired", "seen": "x", "reason": "x"}),
    CONSOLE + "/devices/{device}/settings": Asked({"version": "x"}),
    CONSOLE + "/devices/{device}/commands": Asked({"kind": "none"}),
    CONSOLE + "/devices/{device}/commands/{command}/cancel": Asked(),
    CONSOLE + "/devices/{device}/spot": Asked({}, {"spot": "{spot}"}),
    CONSOLE + "/incidents/{incident}": Asked({"do": "burn"}),
    f"{CONSOLE}/bulk": Asked({"do": "identify", "shown": "x"}, {"q": 'device = "{device}"'}),
    f"{CONSOLE}/rollouts/new": Asked(
        {"bundle": "bundle-common", "wave1": "rest", "shown": "x"}, {"segment": "{segment}"}
    ),
    CONSOLE + "/rollouts/{rollout}": Asked({"do": "pause"}),
    f"{CONSOLE}/rollouts/freezes": Asked({"name": "", "ends_at": "x"}),
    CONSOLE + "/rollouts/freezes/{freeze}/end": Asked(),
    f"{CONSOLE}/segments": Asked({"name": "", "follows": "live"}, {"segment": "{segment}"}),
    f"{CONSOLE}/import": Asked(
        {"apply": "yes"},
        {
            "text": "site_ref,time_zone\n{site},Europe/Nowhere\n",
            "text:door": "site,door_ref,behind\nmine,{door},\n",
            "text:spot": "site,spot_ref,kind\nmine,{spot},kiosk\n",
        },
    ),
    f"{CONSOLE}/people": Asked(
        {"email": "x@example.com", "role": "no role"}, {"scope": "site:{site}"}
    ),
    CONSOLE + "/people/{user}/grant": Asked(
        {"role": "analyst"}, {"scope": "site:{site}", "scope:region": "region:{region}"}
    ),
    CONSOLE + "/people/{user}/revoke": Asked(
        {"role": "analyst"},
        {"scope": "site:{site}", "scope:other": "organisation:{organisation}"},
    ),
    CONSOLE + "/people/{user}/link": Asked(),
    CONSOLE + "/people/{user}/disable": Asked(),
    CONSOLE + "/people/{user}/enable": Asked(),
    "/console/unknown/dismiss": Asked({"serial": "x"}),
    "/console/people": Asked({"email": "x@example.com"}, {"scope": "site:{site}"}),
    "/console/people/{user}/grant": Asked({"role": "analyst"}),
    "/console/people/{user}/revoke": Asked({"role": "analyst"}),
    "/console/people/{user}/link": Asked(),
    "/console/people/{user}/disable": Asked(),
    "/console/people/{user}/enable": Asked(),
    "/accuracy/recount/{spot}": Asked(),
    "/accuracy/recount/{spot}/factor": Asked({"factor": "1.0000"}),
    "/surveys/new": Asked({"do": "keep", "name": ""}),
    "/surveys/{survey}": Asked({"to": "burnt"}),
    "/surveys/{survey}/rounds": Asked(
        {"name": "A", "delay": "0"}, {"site": "{site}", "follows": "{round}"}
    ),
    "/surveys/{survey}/tokens": Asked({"channel": "link", "count": "0"}, {"site": "{site}"}),
    "/surveys/{survey}/offers": Asked({}, {"place": "{site}/{spot}"}),
    "/surveys/{survey}/offers/{offer}": Asked(),
    "/tech/sites/{site}/voucher": Asked(),
    "/tech/claims/{claim}/end": Asked(),
    "/tech/claims/{claim}/compare": Asked(),
}
SILENT = {"kind": "visit", "reason": "A", "ends_at": "2026-04-03T12:00:00Z"}
SILENT_AT = {"site:one": "{site}", "region:one": "{region}", "device:one": "{device}"}
ROLL = {"bundle": "bundle-common"}
ROLL_TO = {
    "filter:x": 'device = "{device}" or site = "{site}"',
    "segment:x": "{segment}",
    "policy:x": 'json:{"waves": [{"filter": "device = {device}"}]}',
}
PLAN = {"title": "A", "owner": "A", "due_on": "2026-05-01", "remeasure_on": "2026-06-01"}
JSON: dict[tuple[str, str], Asked] = {
    ("PUT", "/v1/feedback-alerts/{ref:alert}/assignee"): Asked({"assignee": ""}),
    ("PUT", "/v1/feedback-alerts/{ref:alert}/outcome"): Asked({"outcome": ""}),
    ("PUT", "/v1/alarm-settings"): Asked(),
    ("PUT", "/v1/devices/{ref:device}/limits"): Asked(
        {"heartbeat_s": "json:600", "data_s": "json:600"}
    ),
    ("POST", "/v1/touchpoints"): Asked({"name": ""}),
    ("POST", "/v1/actions"): Asked(
        PLAN,
        {"site": "{site}", "touchpoint": "{touchpoint}", "alert": "{alert}"},
    ),
    ("PUT", "/v1/actions/{ref:action}/done"): Asked({"done_on": "1999-01-01"}),
    ("PUT", "/v1/actions/{ref:action}/told"): Asked(),
    ("PUT", "/v1/actions/{ref:action}/closed"): Asked(),
    **{
        (method, f"/v1{path}/settings"): Asked({"values": "json:{}"})
        for method in ("PUT", "PATCH")
        for path in ("", "/models/{ref:model}", "/sites/{ref:site}", "/devices/{ref:device}")
    },
    ("POST", "/v1/settings:preview"): Asked(
        {"scope": "site", "values": "json:{}"}, {"of": "{site}"}
    ),
    ("POST", "/v1/commands"): Asked({"kind": "identify"}, {"devices": 'json:["{device}"]'}),
    ("POST", "/v1/commands:preview"): Asked({"kind": "identify"}, {"site": "{site}"}),
    ("DELETE", "/v1/commands/{ref:command}"): Asked(),
    ("POST", "/v1/regions"): Asked({"name": ""}),
    ("PATCH", "/v1/regions/{ref:region}"): Asked(),
    ("POST", "/v1/sites"): Asked({"name": "A", "time_zone": "x"}, {"region": "{region}"}),
    ("PATCH", "/v1/sites/{ref:site}"): Asked({}, {"region": "{region}"}),
    ("POST", "/v1/doors"): Asked({"name": ""}, {"site": "{site}", "behind": "{door}"}),
    ("PATCH", "/v1/doors/{ref:door}"): Asked({}, {"behind": "{door}"}),
    ("POST", "/v1/spots"): Asked(
        {"name": "mine", "kind": "kiosk"}, {"site": "{site}", "door": "{door}"}
    ),
    ("PATCH", "/v1/spots/{ref:spot}"): Asked({}, {"door": "{door}"}),
    ("POST", "/v1/metrics:query"): Asked(
        {"metrics": 'json:["visits"]', **RANGE}, {"sites": 'json:["{site}"]'}
    ),
    ("POST", "/v1/targets"): Asked(
        {"metric": "visits", "wanted": "json:5", **RANGE}, {"site": "{site}"}
    ),
    ("PATCH", "/v1/targets/{ref:target}"): Asked({"note": "x"}),
    ("DELETE", "/v1/targets/{ref:target}"): Asked(),
    ("PUT", "/v1/calendar"): Asked(),
    ("PUT", "/v1/incidents/{ref:incident}/acknowledgement"): Asked(),
    ("DELETE", "/v1/incidents/{ref:incident}/acknowledgement"): Asked(),
    ("PUT", "/v1/incidents/{ref:incident}/owner"): Asked({"owner": "A"}),
    ("PUT", "/v1/incidents/{ref:incident}/due"): Asked({"due_at": "2026-04-03T12:00:00Z"}),
    ("POST", "/v1/incidents/{ref:incident}/comments"): Asked({"words": "A"}),
    ("POST", "/v1/health-windows"): Asked(SILENT, SILENT_AT),
    ("POST", "/v1/health-windows:preview"): Asked(SILENT, SILENT_AT),
    ("DELETE", "/v1/health-windows/{ref:window}"): Asked(),
    ("POST", "/v1/health-contacts"): Asked({"name": "A", "email": "nobody"}),
    ("DELETE", "/v1/health-contacts/{ref:contact}"): Asked(),
    ("PUT", "/v1/health-rules"): Asked(),
    ("POST", "/v1/rollouts:preview"): Asked(ROLL, ROLL_TO),
    ("POST", "/v1/rollouts"): Asked({**ROLL, "name": "A"}, ROLL_TO),
    **{
        ("PUT", f"/v1/rollouts/{{ref:rollout}}/{done}"): Asked(
            {} if done in ("submitted", "approved", "started") else {"reason": "A"}
        )
        for done in (
            *("submitted", "approved", "started", "paused", "resumed", "cancelled", "reverted"),
        )
    },
    ("PUT", "/v1/rollouts/{ref:rollout}/joiners"): Asked({}, {"devices": 'json:["{device}"]'}),
    ("POST", "/v1/freezes"): Asked(
        {"name": "A", "reason": "A", "ends_at": "1999-01-01T00:00:00Z"}, {"sites": "site = {site}"}
    ),
    ("DELETE", "/v1/freezes/{ref:freeze}"): Asked(),
    ("POST", "/v1/webhooks"): Asked({"url": "http://example.com/"}),
    ("POST", "/v1/segments"): Asked(
        {"name": "", "follows": "live"}, {"filter": 'device = "{device}"'}
    ),
    ("DELETE", "/v1/segments/{ref:segment}"): Asked(),
    ("PATCH", "/v1/webhooks/{ref:webhook}"): Asked(),
    ("DELETE", "/v1/webhooks/{ref:webhook}"): Asked(),
    ("POST", "/v1/experiments"): Asked({"name": "A", "metrics": "visits"}),
    ("POST", "/v1/experiments:plan"): Asked({"name": "A", "metrics": "visits"}),
    ("PATCH", "/v1/experiments/{ref:experiment}"): Asked({"to": "sealed"}),
    ("POST", "/v1/recounts"): Asked(
        {"method": "none", "counted_by": "x", "blocks": "json:[]"}, {"spot": "{spot}"}
    ),
    ("DELETE", "/v1/recounts/{ref:recount}"): Asked(),
    ("POST", "/v1/transactions"): Asked(
        {},
        {
            "transactions": 'json:[{"site": "{site}", "transaction": "x", '
            '"at": "2026-03-01T10:00Z", "kind": "none", "amount": "1"}]'
        },
    ),
    ("POST", "/v1/shifts"): Asked(
        {},
        {
            "shifts": 'json:[{"site": "{site}", "shift": "x", "starts": "2026-03-01T10:00Z", '
            '"ends": "2026-03-01T10:00Z"}]'
        },
    ),
    ("POST", "/v1/campaigns"): Asked(
        {},
        {
            "campaigns": 'json:[{"sites": ["{site}"], "campaign": "x", "name": "x", '
            '"from": "2026-03-01", "to": "2026-02-01", "channel": "x", "cost": "1", '
            '"currency": "SEK"}]'
        },
    ),
    ("POST", "/v1/rates"): Asked({"rates": "json:[]"}),
    ("POST", "/v1/questionnaires"): Asked({"name": ""}),
    ("DELETE", "/v1/questionnaires/{ref:questionnaire}"): Asked(),
    ("POST", "/v1/publications"): Asked(
        {"until": "1990-01-01", "from": "1991-01-01"},
        {"questionnaire": "{questionnaire}", "site": "{site}", "spot": "{spot}"},
    ),
    ("DELETE", "/v1/publications/{ref:publication}"): Asked(),
    ("POST", "/v1/surveys"): Asked({"name": ""}),
    ("PATCH", "/v1/surveys/{ref:survey}"): Asked({"state": "closed"}),
    ("POST", "/v1/survey-tokens"): Asked(
        {"channel": "link"}, {"survey": "{survey}", "site": "{site}", "round": "{round}"}
    ),
    ("POST", "/v1/survey-offers"): Asked(
        {}, {"survey": "{survey}", "site": "{site}", "spot": "{spot}"}
    ),
    ("DELETE", "/v1/survey-offers/{ref:offer}"): Asked(),
    ("POST", "/v1/rounds"): Asked(
        {"name": "A"}, {"survey": "{survey}", "site": "{site}", "follows": "{round}"}
    ),
    ("DELETE", "/v1/rounds/{ref:round}"): Asked(),
}
"""What programs write, as JSON."""

WHO_ONE_IS = (
    {
        ("POST", path)
        for path in ("/signin", "/signin/code", "/signout", "/link", "/invitation", "/password")
    }
    | {("POST", f"/account/{path}") for path in ("self", "password", "codes", "codes/confirm")}
    | {("POST", "/account/codes/end")}
    | {("GET", path) for path in ("/signin", "/link", "/invitation", "/password", "/language")}
    | {("GET", "/s"), ("GET", "/s/{token}"), ("POST", "/s/{token}")}
    | {("GET", "/w/{token}")}
    | {("GET", "/unsubscribe/{token}"), ("POST", "/unsubscribe/{token}")}
)
"""Here nothing is named but by a password or a secret: see test_people_signin, test_surveys,
test_digests, test_staff."""
ASSETS = {
    ("GET", path)
    for path in (
        "/static/{name}",
        "/tech/manifest.webmanifest",
        "/tech/worker.js",
        "/v1/openapi.json",
        "/v1/docs",
    )
}
"""The same for everyone."""
ELSEWHERE = {
    ("GET", "/events"),
    ("GET", "/console/o/{organisation}/events"),
    ("GET", "/console/o/{organisation}/rollouts/events"),
    ("GET", "/console/o/{organisation}/rollouts/{rollout}/events"),
    ("POST", "/tech/acts"),
}
"""Tested below by themselves: a stream, and what a phone's acts name."""


TABLE = [
    *(("GET", *each) for each in GET.items()),
    *(("POST", *each) for each in POST.items()),
    *((*route, asked) for route, asked in JSON.items()),
]


async def test_what_is_anothers_is_answered_like_what_is_not_there(fuzz: Fuzz) -> None:
    before, tried = await state_of(fuzz.people), 0
    for method, path, asked in TABLE:
        parts = [f"/{name}" for name in re.findall(r"{(?:\w+:)?(\w+)}", path)]
        for slot in [*parts, *asked.slots]:
            theirs = await fuzz.ask(method, path, asked, {slot: THEIRS})
            absent = await fuzz.ask(method, path, asked, {slot: ABSENT})
            where = f"{method} {path} by {slot}"
            assert not theirs.startswith("500"), where
            assert neutral(theirs, THEIRS, fuzz.sessions) == neutral(
                absent, ABSENT, fuzz.sessions
            ), where
            assert MARK not in theirs, where
            tried += 1
        if not parts and not asked.slots:
            assert MARK not in await fuzz.ask(method, path, asked, {}), path
    assert tried > 80
    assert await state_of(fuzz.people) == before


async def test_the_own_things_are_there(fuzz: Fuzz) -> None:
    """Else the test above would prove nothing."""
    for path, asked in GET.items():
        if path.startswith(("/console/unknown", "/console/people", "/console/audit")):
            continue  # of who oversees everything
        if path in ("/v1/comparison", "/trends/funnel.json"):
            continue  # of one site there is none
        if path in ("/v1/feedback", "/v1/response-rate"):  # there is no kiosk
            asked = Asked(asked.fixed, {"site": "{site}"})
        answer = await fuzz.ask("GET", path, asked, {})
        assert answer.startswith("200"), (path, answer[:200])


async def test_a_phones_acts_name_nothing_of_another(fuzz: Fuzz) -> None:
    before = await state_of(fuzz.people)
    at_ms = int(NOW.timestamp() * 1000)
    acts: list[tuple[str, dict[str, object]]] = [
        ("site", {"kind": "spot", "ref": "spot-newx2345", "takes": "counter", "name": "A"}),
        ("spot", {"kind": "claim", "label": "V1:DC-1:ABCD"}),
        ("spot", {"kind": "bind", "serial": "DC-1", "proof": "00"}),
        ("claim", {"kind": "walk", "begun_ms": at_ms, "until_ms": at_ms, "taps": []}),
        ("claim", {"kind": "sign off", "staff": "A"}),
    ]
    for number, (slot, act) in enumerate(acts):
        answers = []
        for names in (THEIRS, ABSENT):
            one = {**act, "act": f"act-{number}-{names['site']}", "at_ms": at_ms, slot: names[slot]}
            async with fuzz.browser.post(
                "/tech/acts",
                data=json.dumps({"acts": [one]}),
                headers={
                    **HTML,
                    "X-CSRF-Token": fuzz.csrf,
                    "Content-Type": "application/json",
                },
            ) as response:
                text = await response.text()
            answers.append(neutral(text, names, {}).replace(str(one["act"]), "ACT"))
            assert response.status == 200, text
        assert answers[0] == answers[1], slot
        assert MARK not in answers[0]
    assert await state_of(fuzz.people) == before


async def test_a_live_page_says_nothing_of_another(fuzz: Fuzz) -> None:
    async def stored(names: dict[str, str], boot: int) -> None:
        await fuzz.people.owner.execute(
            "insert into boots (device_id, boot_id, ordinal, last_stored) "
            "select id, $2, 1, now() from devices where device = $1",
            *(names["device"], boot),
        )

    await stored(OWN, 1)
    async with fuzz.browser.get("/events", headers=HTML) as response:
        assert response.status == 200
        assert await response.content.readuntil(b"\n\n") == b": alive\n\n"
        await stored(THEIRS, 2)
        assert await response.content.readuntil(b"\n\n") == b": alive\n\n"
        await stored(OWN, 3)
        assert await response.content.readuntil(b"\n\n") == b"event: changed\ndata: 1\n\n"


def routes_of(app: web.Application) -> set[tuple[str, str]]:
    """Return method and address of every route, those of sub-applications too."""
    found = set()
    for route in app.router.routes():
        assert route.resource is not None
        if route.method != "HEAD":
            found.add((route.method, route.resource.canonical))
    return found


async def test_every_route_is_fuzzed(people: People) -> None:
    covered = {(method, re.sub(r"{(\w+):\w+}", r"{\1}", path)) for method, path, _ in TABLE}
    covered |= WHO_ONE_IS | ASSETS | ELSEWHERE
    there = routes_of(people.app)
    assert there - covered == set(), "say in the tables above what can be named through these"
    assert covered - there == set(), "these are gone"
