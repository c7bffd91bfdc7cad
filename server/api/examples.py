"""An example of every operation, as the OpenAPI document shows it and a test sends it.

Each is sent, in this order, to an organisation that has one of everything under these names
(tests/integration/test_api_contract.py), and must succeed, or be refused with the code that it
names. An operation without an example fails that test.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One request: parts of its path, its query and its JSON body.

    `refused` is the code of the answer where an organisation is too small for any other.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    refused: str | None = None


def name_of(kind: str) -> str:
    """Return what a thing of a kind is called in examples."""
    return "dc-k7m2x9ab4567" if kind == "device" else f"{kind}-k7m2x9ab"


def _ref(kind: str) -> dict[str, str]:
    return {"ref": name_of(kind)}


_SITE, _SPOT = name_of("site"), name_of("spot")
_MARCH = {"from": "2026-03-01", "to": "2026-03-05"}
_AT = {**_MARCH, "site": _SITE}
_DESIGN: dict[str, Any] = {
    "name": "Warmer light at the entrance",
    "metrics": ["visits"],
    "starts_on": "2026-04-13",
    "weeks": 8,
    "pre_weeks": 12,
    "hypothesis": "More who pass come in",
}
_ASKED: dict[str, Any] = {
    "languages": ["en"],
    "title": {"en": "Your visit"},
    "questions": [{"kind": "smiley4", "text": {"en": "How was your visit today?"}}],
}
_REFIT: dict[str, Any] = {
    "kind": "maintenance",
    "reason": "The entrance is rebuilt",
    "site": _SITE,
    "ends_at": "2026-04-05T18:00:00Z",
}
_BATTERY: dict[str, Any] = {
    "languages": ["en"],
    "title": {"en": "Your visit"},
    "why": {"en": "It decides what we change next."},
    "factors": [
        {"key": "staff", "name": {"en": "Staff"}, "goal": "To feel welcome"},
        {"key": "till", "name": {"en": "Check-out"}, "goal": "To get on"},
    ],
    "items": [
        {"key": "overall", "kind": "overall", "text": {"en": "All in all?"}},
        *(
            {"key": f"{factor}{n}", "kind": "statement", "text": {"en": text}, "factor": factor}
            for factor, texts in (
                ("staff", ("Somebody saw me.", "I was helped.", "They knew.", "I felt welcome.")),
                ("till", ("I paid soon.", "It was easy.", "It was right.", "They were friendly.")),
            )
            for n, text in enumerate(texts)
        ),
    ],
    "shown": 5,
}

EXAMPLES: dict[str, Example] = {
    "GET /sites": Example(query={"limit": "100"}),
    "GET /sites/{ref}": Example(_ref("site")),
    "GET /sites/{ref}/record": Example(_ref("site")),
    "GET /settings:table": Example(),
    "GET /settings": Example(),
    "PATCH /settings": Example(body={"values": {"health_s": 600}}),
    "PUT /settings": Example(body={"values": {"health_s": 600, "spread_s": 20}}),
    "GET /models/{ref}/settings": Example(_ref("model")),
    "PATCH /models/{ref}/settings": Example(_ref("model"), body={"values": {"keepalive_s": 60}}),
    "PUT /models/{ref}/settings": Example(_ref("model"), body={"values": {"keepalive_s": 60}}),
    "POST /settings:preview": Example(
        body={"scope": "site", "of": name_of("site"), "values": {"frame_s": 60}}
    ),
    "GET /sites/{ref}/settings": Example(_ref("site")),
    "PATCH /sites/{ref}/settings": Example(_ref("site"), body={"values": {"frame_s": 60}}),
    "PUT /sites/{ref}/settings": Example(_ref("site"), body={"values": {"frame_s": 900}}),
    "GET /devices/{ref}/settings": Example(_ref("device")),
    "PATCH /devices/{ref}/settings": Example(
        _ref("device"), body={"values": {"broker": "broker.example:8883"}}
    ),
    "PUT /devices/{ref}/settings": Example(_ref("device"), body={"values": {}}),
    "GET /settings:layers": Example(),
    "GET /devices/{ref}/configuration": Example(_ref("device")),
    "POST /commands:preview": Example(body={"kind": "reboot", "site": name_of("site")}),
    "POST /commands": Example(
        body={"kind": "self-test", "devices": [name_of("device")], "ttl_s": 3600}
    ),
    "GET /commands": Example(query={"device": name_of("device"), "limit": "20"}),
    "GET /commands/{ref}": Example(_ref("command")),
    "GET /commands/{ref}/file": Example(_ref("command")),
    "GET /batches/{ref}": Example(_ref("batch")),
    "DELETE /commands/{ref}": Example(_ref("command")),
    "GET /spots": Example(query={"site": _SITE}),
    "GET /device-fields": Example(),
    "GET /segments": Example(),
    "GET /segments/{ref}": Example(_ref("segment")),
    "POST /segments": Example(
        body={"name": "Old ones at the door", "filter": "firmware < 2.4", "follows": "live"}
    ),
    "DELETE /segments/{ref}": Example(_ref("segment")),
    "GET /spots/{ref}": Example(_ref("spot")),
    "GET /doors/{ref}": Example(_ref("door")),
    "GET /regions": Example(),
    "GET /regions/{ref}": Example(_ref("region")),
    "GET /devices": Example(query={"format": "csv"}),
    "GET /presence": Example(query={"site": _SITE, "state": "offline,healthy"}),
    "GET /devices/{ref}": Example(_ref("device")),
    "GET /devices/{ref}/events": Example(_ref("device")),
    "GET /devices/{ref}/metrics": Example(_ref("device"), {**_MARCH, "name": "uptime.s"}),
    "GET /stability": Example(query=_MARCH),
    "PUT /devices/{ref}/limits": Example(
        _ref("device"), body={"heartbeat_s": 2700, "data_s": 7200}
    ),
    "GET /counts": Example(query={**_AT, "bucket": "hour", "scope": "open"}),
    "GET /feedback": Example(query={**_AT, "bucket": "day"}),
    "GET /response-rate": Example(query=_AT),
    "GET /conversion": Example(query=_AT),
    "GET /gaps": Example(query={**_MARCH, "spot": _SPOT}),
    "GET /masks": Example(query={**_MARCH, "spot": _SPOT}),
    "GET /estimates": Example(query={**_AT, "bucket": "hour"}),
    "GET /occupancy": Example(query=_AT),
    "GET /changes": Example(query={"kind": "bucket.revised", "limit": "100"}),
    "GET /incidents": Example(query={"site": _SITE, "open": "true"}),
    "GET /incidents:ranked": Example(query={"limit": "20"}),
    "GET /incidents/{ref}": Example(_ref("incident")),
    "GET /incidents/{ref}/why": Example(_ref("incident")),
    "PUT /incidents/{ref}/acknowledgement": Example(
        _ref("incident"), body={"until": "2026-04-02T16:00:00Z"}
    ),
    "DELETE /incidents/{ref}/acknowledgement": Example(_ref("incident")),
    "PUT /incidents/{ref}/owner": Example(_ref("incident"), body={"owner": "A. Berg"}),
    "PUT /incidents/{ref}/due": Example(_ref("incident"), body={"due_at": "2026-04-03T08:00:00Z"}),
    "POST /incidents/{ref}/comments": Example(
        _ref("incident"), body={"words": "The shop was called: the router is being replaced."}
    ),
    "GET /releases": Example(query={"format": "csv"}),
    "GET /bundles": Example(),
    "GET /devices/{ref}/firmware": Example(_ref("device")),
    "POST /rollouts:preview": Example(
        body={"bundle": "bundle-common", "filter": 'model = "DC2"', "policy": {"controls": 0}}
    ),
    "POST /rollouts": Example(
        body={
            "name": "Agent 2.5",
            "bundle": "bundle-common",
            "filter": 'model = "DC2"',
            "policy": {
                "waves": [{"count": 10, "stratified": True}, {"percent": 20}, {}],
                "gate": {"success_pct": 95, "min_sample": 10, "soak_s": 86400},
                "on_halt": "revert all",
            },
        },
        refused="no_devices",
    ),
    "GET /rollouts": Example(query={"over": "false", "limit": "20"}),
    "GET /rollouts/{ref}": Example(_ref("rollout")),
    "GET /rollouts/{ref}/plan": Example(_ref("rollout")),
    "GET /rollouts/{ref}/executions": Example(
        _ref("rollout"), {"state": "planned,failed", "filter": 'model = "DC2"'}
    ),
    "GET /rollouts/{ref}/history": Example(_ref("rollout")),
    "GET /rollouts/{ref}/why": Example(_ref("rollout"), {"device": name_of("device")}),
    "PUT /rollouts/{ref}/submitted": Example(_ref("rollout"), refused="bad_transition"),
    "PUT /rollouts/{ref}/approved": Example(
        _ref("rollout"), body={"starts_at": "2026-04-05T18:00:00Z"}, refused="bad_transition"
    ),
    "PUT /rollouts/{ref}/started": Example(_ref("rollout"), refused="bad_transition"),
    "PUT /rollouts/{ref}/paused": Example(
        _ref("rollout"), body={"reason": "The network is rebuilt until noon"}
    ),
    "PUT /rollouts/{ref}/resumed": Example(
        _ref("rollout"), body={"reason": "The network is back; nothing failed of the release"}
    ),
    "PUT /rollouts/{ref}/reverted": Example(
        _ref("rollout"),
        body={"reason": "Doors count 4 % less", "how": "revert all"},
        refused="no_way_back",
    ),
    "PUT /rollouts/{ref}/joiners": Example(
        _ref("rollout"), body={"devices": [name_of("device")]}, refused="bad_transition"
    ),
    "PUT /rollouts/{ref}/cancelled": Example(
        _ref("rollout"), body={"reason": "The next release replaces it"}
    ),
    "GET /freezes": Example(query={"past": "true"}),
    "GET /freezes/{ref}": Example(_ref("freeze")),
    "POST /freezes": Example(
        body={
            "name": "Black Friday",
            "reason": "Nothing changes in the busiest week",
            "starts_at": "2026-11-23T00:00:00+01:00",
            "ends_at": "2026-11-30T00:00:00+01:00",
            "sites": 'site.region = "North"',
        }
    ),
    "DELETE /freezes/{ref}": Example(_ref("freeze"), refused="not_its_author"),
    "GET /health-windows": Example(query={"past": "true"}),
    "POST /health-windows:preview": Example(body=_REFIT),
    "POST /health-windows": Example(body=_REFIT),
    "DELETE /health-windows/{ref}": Example(_ref("window")),
    "GET /health-contacts": Example(),
    "POST /health-contacts": Example(
        body={
            "name": "Night desk",
            "email": "night@example.com",
            "severity": "critical",
            "time_zone": "Europe/Stockholm",
            "since": "18:00",
            "until": "07:00",
        }
    ),
    "DELETE /health-contacts/{ref}": Example(_ref("contact")),
    "GET /health-rules": Example(),
    "PUT /health-rules": Example(
        body={
            "conditions": {"offline": {"opens_after_s": 300, "severity": "major"}},
            "channels": {"minor": ["digest"]},
            "seen": 1,
        }
    ),
    "GET /notices": Example(query={"dead": "true"}),
    "GET /webhooks": Example(),
    "GET /webhooks/{ref}": Example(_ref("webhook")),
    "GET /webhooks/{ref}/deliveries": Example(_ref("webhook"), {"dead": "true"}),
    "POST /webhooks": Example(
        body={"url": "https://hooks.example.com/vestibule", "kinds": ["bucket.revised"]}
    ),
    "PATCH /webhooks/{ref}": Example(_ref("webhook"), body={"enabled": True}),
    "GET /accuracy": Example(query={"site": _SITE}),
    "GET /recounts": Example(query={"site": _SITE}),
    "POST /recounts": Example(
        body={
            "spot": _SPOT,
            "method": "video",
            "counted_by": "A. Berg",
            "blocks": [{"from": "2026-03-02T10:00:00+01:00", "in": 41, "out": 38}],
        }
    ),
    "GET /rates": Example(query={"limit": "50"}),
    "GET /campaigns": Example(),
    "GET /tills": Example(query={"site": _SITE}),
    "GET /sales": Example(query={**_AT, "currency": "EUR"}),
    "POST /transactions": Example(
        body={
            "transactions": [
                {
                    "site": _SITE,
                    "transaction": "2026-03-02-0017",
                    "at": "2026-03-02T10:04:00+01:00",
                    "kind": "sale",
                    "amount": "349.00",
                    "units": 2,
                }
            ]
        }
    ),
    "POST /shifts": Example(
        body={
            "shifts": [
                {
                    "site": _SITE,
                    "shift": "w10-mon-1",
                    "starts": "2026-03-02T09:45:00+01:00",
                    "ends": "2026-03-02T18:15:00+01:00",
                    "role": "sales",
                }
            ]
        }
    ),
    "POST /campaigns": Example(
        body={
            "campaigns": [
                {
                    "campaign": "spring-2026",
                    "name": "Spring",
                    "from": "2026-03-02",
                    "to": "2026-03-15",
                    "channel": "radio",
                    "cost": "12000",
                    "currency": "SEK",
                }
            ]
        }
    ),
    "POST /rates": Example(
        body={
            "rates": [
                {
                    "day": "2026-03-02",
                    "base": "EUR",
                    "quote": "SEK",
                    "rate": "11.02",
                    "source": "the bank's own list",
                }
            ]
        }
    ),
    "GET /touchpoints": Example(),
    "POST /touchpoints": Example(body={"name": "Fitting rooms"}),
    "GET /feedback-alerts": Example(query={"site": _SITE, "open": "true"}),
    "PUT /feedback-alerts/{ref}/assignee": Example(_ref("alert"), body={"assignee": "A. Berg"}),
    "PUT /feedback-alerts/{ref}/outcome": Example(
        _ref("alert"), body={"outcome": "A till was opened at noon"}
    ),
    "GET /alarm-settings": Example(),
    "PUT /alarm-settings": Example(body={"false_alarms_per_week": 0.5}),
    "GET /actions": Example(query={"site": _SITE}),
    "POST /actions": Example(
        body={
            "site": _SITE,
            "touchpoint": name_of("touchpoint"),
            "title": "One more till at noon",
            "owner": "A. Berg",
            "due_on": "2026-05-04",
            "remeasure_on": "2026-06-01",
        }
    ),
    "PUT /actions/{ref}/told": Example(
        _ref("action"), body={"told": {"en": "You waited at noon: now two tills are open."}}
    ),
    "PUT /actions/{ref}/done": Example(_ref("action"), body={"done_on": "2026-04-02"}),
    "PUT /actions/{ref}/closed": Example(_ref("action"), refused="too_early"),
    "DELETE /recounts/{ref}": Example(_ref("recount")),
    "DELETE /webhooks/{ref}": Example(_ref("webhook")),
    "GET /definitions": Example(),
    "POST /metrics:query": Example(
        body={"metrics": ["visits", "conversion"], **_MARCH, "by": "site", "sites": [_SITE]}
    ),
    "GET /targets": Example(query={"site": _SITE}),
    "GET /calendar": Example(),
    "GET /periods": Example(query={"year": "2026"}),
    "GET /questionnaires": Example(),
    "GET /questionnaires/{ref}": Example(_ref("questionnaire")),
    "GET /publications": Example(query={"site": _SITE}),
    "GET /surveys": Example(),
    "GET /surveys/{ref}": Example(_ref("survey")),
    "GET /surveys/{ref}/results": Example(_ref("survey"), {"by": "site", "site": _SITE}),
    "GET /surveys/{ref}/drivers": Example(_ref("survey")),
    "GET /surveys/{ref}/words": Example(_ref("survey")),
    "GET /survey-offers": Example(query={"site": _SITE}),
    "GET /rounds": Example(),
    "GET /rounds/{ref}/change": Example(_ref("round")),
    "GET /experiments": Example(query={"state": "decided"}),
    "GET /experiments:learning": Example(),
    "GET /experiments/{ref}": Example(_ref("experiment")),
    "GET /experiments/{ref}/result": Example(_ref("experiment")),
    "GET /experiments/{ref}/snapshot": Example(_ref("experiment")),
    "GET /comparison": Example(query={**_MARCH, "measure": "conversion"}, refused="too_few_sites"),
    "POST /experiments:plan": Example(body=_DESIGN, refused="too_few_pairs"),
    "POST /experiments": Example(body=_DESIGN, refused="too_few_pairs"),
    "PATCH /experiments/{ref}": Example(
        _ref("experiment"), body={"to": "archived", "note": "Kept in all shops since May"}
    ),
    "POST /regions": Example(body={"name": "Mälardalen"}),
    "PATCH /regions/{ref}": Example(_ref("region"), body={"name": "Svealand"}),
    "POST /sites": Example(
        body={
            "name": "Drottninggatan 71",
            "time_zone": "Europe/Stockholm",
            "currency": "SEK",
            "region": name_of("region"),
            "hours": "Mo-Fr 10:00-19:00; Sa 10:00-17:00",
        }
    ),
    "PATCH /sites/{ref}": Example(_ref("site"), body={"hours": "Mo-Sa 09:00-20:00"}),
    "POST /doors": Example(body={"site": _SITE, "name": "Towards the square"}),
    "PATCH /doors/{ref}": Example(_ref("door"), body={"name": "Towards the station"}),
    "POST /spots": Example(
        body={"site": _SITE, "name": "Above the door", "kind": "counter", "height_cm": 290}
    ),
    "PATCH /spots/{ref}": Example(_ref("spot"), body={"height_cm": 310}),
    "POST /targets": Example(
        body={
            "site": _SITE,
            "metric": "visits",
            "from": "2026-04-01",
            "to": "2026-05-01",
            "wanted": 12000,
        }
    ),
    "GET /targets/{ref}": Example(_ref("target")),
    "PATCH /targets/{ref}": Example(_ref("target"), body={"wanted": 12500}),
    "DELETE /targets/{ref}": Example(_ref("target")),
    "PUT /calendar": Example(body={"pattern": "4-5-4", "month": 2, "weekday": 6}),
    "POST /questionnaires": Example(body={"name": "Leaving", "content": _ASKED}),
    "POST /publications": Example(
        body={"questionnaire": name_of("questionnaire"), "site": _SITE, "from": "2027-04-06"}
    ),
    "DELETE /publications/{ref}": Example(_ref("publication")),
    "DELETE /questionnaires/{ref}": Example(_ref("questionnaire")),
    "POST /surveys": Example(body={"name": "Visit", "content": _BATTERY}),
    "POST /survey-tokens": Example(
        body={
            "survey": name_of("survey"),
            "site": _SITE,
            "channel": "receipt",
            "touchpoint": "Till 3",
            "delay": "1-7 d",
            "count": 2,
        }
    ),
    "POST /rounds": Example(
        body={
            "survey": name_of("survey"),
            "site": _SITE,
            "name": "With a second till",
            "follows": name_of("round"),
        }
    ),
    "POST /survey-offers": Example(body={"survey": name_of("survey"), "site": _SITE}),
    "DELETE /survey-offers/{ref}": Example(_ref("offer")),
    "DELETE /rounds/{ref}": Example(_ref("round")),
    "PATCH /surveys/{ref}": Example(_ref("survey"), body={"state": "closed"}),
}


def filled(path: str, example: Example) -> str:
    """Return a path with the example's parts in it."""
    return re.sub(r"{(\w+)}", lambda found: example.path[found[1]], path)
