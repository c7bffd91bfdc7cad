"""Two organisations with one of everything, and whoever asks in the one for what is the other's."""

import hashlib
import json
import re
from dataclasses import dataclass, field

import asyncpg
import pytest
from aiohttp import ClientSession, FormData

from server.api.keys import create_api_key
from server.people.roles import Grant, Role
from tests.integration.people_world import HTML, NOW, People, form_of

MARK = "zebra"
"""Stands in every name that the other organisation has given."""

KINDS = (
    *("site", "region", "door", "spot", "user", "claim", "organisation", "voucher", "target"),
    *("questionnaire", "publication", "experiment", "survey", "round", "offer"),
    *("webhook", "segment", "recount", "alert", "touchpoint", "action"),
    *("model", "command", "batch"),
    *("incident", "window", "contact"),
    *("rollout", "execution", "freeze"),
)
OWN = {kind: f"{kind}-mine2345" for kind in KINDS} | {"device": "dc-mine23456789"}
THEIRS = {kind: f"{kind}-thrs2345" for kind in KINDS} | {"device": "dc-thrs23456789"}
ABSENT = {kind: f"{kind}-none2345" for kind in KINDS} | {"device": "dc-none23456789"}


@dataclass(frozen=True)
class Asked:
    """What a route can be asked: fixed texts, and `slots`, which name something of a kind.

    `{kind}` in a slot's text is where the name goes; parts of the address are slots by themselves.
    """

    fixed: dict[str, str] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)


@dataclass
class Fuzz:
    """Somebody who may do everything in the own organisation, and nothing in the other."""

    people: People
    browser: ClientSession
    csrf: str
    key: str
    sessions: dict[str, str]

    async def ask(
        self, method: str, path: str, asked: Asked, names: dict[str, dict[str, str]]
    ) -> str:
        """Return status and text of an answer, with what was named taken out of it."""
        self.people.clock.advance(0.1)  # so that no key asks faster than it may
        values = dict(asked.fixed)
        for name, text in asked.slots.items():
            chosen = names.get(name)
            if ":" not in name or chosen is not None:
                values[name.split(":")[0]] = self._filled(text, chosen or OWN)
        address = re.sub(r"{(?:(\w+):)?(\w+)}", lambda m: names.get(f"/{m[2]}", OWN)[m[2]], path)
        headers = dict(HTML)
        if address.startswith("/v1/"):
            headers = {"Authorization": f"Bearer {self.key}", "If-Match": "*"}
        if method == "GET":
            request = self.browser.get(
                address, params=values, headers=headers, allow_redirects=False
            )
        elif address.startswith("/v1/"):
            body = {name: _typed(text) for name, text in values.items()}
            request = self.browser.request(method, address, json=body, headers=headers)
        else:
            form = FormData({**values, "csrf": self.csrf})
            request = self.browser.request(
                method, address, data=form, headers=headers, allow_redirects=False
            )
        async with request as response:
            text = f"{response.status} {response.headers.get('Location', '')}\n"
            if not response.content_type.startswith("text/event-stream"):
                text += await response.text()
        return text

    def _filled(self, text: str, chosen: dict[str, str]) -> str:
        return re.sub(
            r"{(\w+)}",
            lambda m: self.sessions[chosen["site"]] if m[1] == "session" else chosen[m[1]],
            text,
        )


def _typed(text: str) -> object:
    """Return a field of a body; what begins with `json:` is no text."""
    return json.loads(text.removeprefix("json:")) if text.startswith("json:") else text


def neutral(text: str, chosen: dict[str, str], sessions: dict[str, str]) -> str:
    """Return an answer without the names that were asked for, and what is new each time."""
    for name in [*chosen.values(), *sessions.values()]:
        text = text.replace(name, "X")
    text = re.sub(r'"request_id":"[^"]*"', "", text)
    return re.sub(r'id="link"[^>]*>[^<]*<', "", text)


@pytest.fixture
async def fuzz(people: People) -> Fuzz:
    """Somebody of an organisation with one of everything, beside another with the same."""
    owner = people.owner
    await owner.execute("delete from sites")
    for names, organisation, words in (
        (OWN, people.organisations["own"], "mine"),
        (THEIRS, people.organisations["other"], MARK),
    ):
        await fill(people, names, organisation, words)
    browser = await people.signed_in("mine@example.com")
    await people.signed_in(f"{MARK}@example.com")
    csrf = (await form_of(browser, "/account"))["csrf"]
    rows = dict(
        await owner.fetch(
            "select u.ref, s.id::text from sessions s join users u on u.id = s.user_id"
        )
    )
    sessions = {
        THEIRS["site"]: rows[THEIRS["user"]],
        ABSENT["site"]: "99999999",
        OWN["site"]: "99999998",
    }
    key = await create_api_key(
        owner,
        people.organisations["own"],
        "fuzz",
        scopes=(
            "read",
            "targets:write",
            "register:write",
            "opinions:write",
            "experiments:write",
            "sources:write",
            "accuracy:write",
            "settings:write",
            "commands:write",
            "health:write",
            "rollouts:write",
        ),
    )
    return Fuzz(people, browser, csrf, key, sessions)


async def fill(people: People, names: dict[str, str], organisation: int, words: str) -> None:
    """Give an organisation one of everything that can be named."""
    owner = people.owner
    await people.user(f"{words}@example.com", Grant(Role.ADMINISTRATOR, organisation))
    await owner.execute(
        "update users set ref = $2, name = $3 where email = $1",
        *(f"{words}@example.com", names["user"], words),
    )
    await owner.execute(
        "update organisations set ref = $2, name = $3 where id = $1",
        *(organisation, names["organisation"], words),
    )
    region = await owner.fetchval(
        "insert into regions (organisation_id, ref, name) values ($1, $2, $3) returning id",
        *(organisation, names["region"], words),
    )
    site = await owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone, region_id, address, opens_on, "
        "closes_on) values ($1, $2, $3, 'Europe/Oslo', $4, $3, '2026-01-01', '2026-12-31') "
        "returning id",
        *(organisation, names["site"], words, region),
    )
    door = await owner.fetchval(
        "insert into doors (organisation_id, site_id, ref, name) values ($1, $2, $3, $4) "
        "returning id",
        *(organisation, site, names["door"], words),
    )
    spot = await owner.fetchval(
        "insert into spots (organisation_id, site_id, door_id, ref, name, kind) "
        "values ($1, $2, $3, $4, $5, 'counter') returning id",
        *(organisation, site, door, names["spot"], words),
    )
    await owner.execute(
        "with made as (insert into questionnaires (organisation_id, ref, hash, name, definition, "
        "content) values ($1, $2, 1, $3, '{}', $6) returning id) insert into publications "
        "(organisation_id, ref, questionnaire_id, site_id) select $1, $4, id, $5 from made",
        *(organisation, names["questionnaire"], words, names["publication"], site),
        b'{"format":1,"languages":["en"],"title":{"en":"A"},"questions":[]}',
    )
    await owner.execute(
        "with made as (insert into recounts (organisation_id, ref, spot_id, method, counted_by, "
        "recorded_by, recorded_at) values ($1, $2, $3, 'manual', $4, $4, $5) returning id) "
        "insert into recount_blocks select $1, id, '2026-03-01T10:00Z', 1, 1 from made",
        *(organisation, names["recount"], spot, words, NOW),
    )
    await owner.execute(
        "insert into transactions (organisation_id, site_id, transaction_ref, at, amount) "
        "values ($1, $2, $3, $4, 1)",
        *(organisation, site, words, NOW),
    )
    await owner.execute(
        "insert into campaigns (organisation_id, campaign_ref, name, channel, from_day, until_day, "
        "currency) values ($1, $2, $2, $2, '2026-03-01', '2026-03-01', 'SEK')",
        *(organisation, words),
    )
    await owner.execute(
        "insert into exchange_rates values ($1, '2026-03-01', 'SEK', 'DKK', 1, $2)",
        *(organisation, words),
    )
    await owner.execute(
        "insert into experiments (organisation_id, ref, name, metrics, starts_on, weeks, "
        "pre_weeks, planned, created_at, created_by, sealed_at, design, seed, commitment, treated, "
        "decided_at, decision, note, result, snapshot, snapshot_sha256) values ($1, $2, $3, "
        "'{visits}', '2025-03-03', 8, 12, '[]', $4, $3, $4, $3, $5, $3, '{}', $4, 'kept', $3, "
        "$6, $3, $3)",
        *(organisation, names["experiment"], words, NOW, bytes(32)),
        '{"standing": "no_difference", "over_on": "2025-04-28"}',
    )
    await owner.execute(
        "insert into kpi_targets (organisation_id, site_id, ref, metric, from_day, until_day, "
        "wanted, note) values ($1, $2, $3, 'visits.v1', '2026-03-01', '2026-04-01', 7, $4)",
        *(organisation, site, names["target"], words),
    )
    await owner.execute(
        "with made as (insert into surveys (organisation_id, ref, name, version, population, hash, "
        "content, made_at, made_by, published_at) values ($1, $2, $5, 1, 'visitors', $6, $7, $8, "
        "'', $8) returning id), first as (insert into survey_rounds (organisation_id, ref, "
        "survey_id, site_id, name, delay, opened_at) select $1, $3 || 'first', id, $4, $5, '0', $8 "
        "from made returning id), offered as (insert into survey_offers (organisation_id, ref, "
        "survey_id, site_id, spot_id, offered_at) select $1, $9, id, $4, $10, $8 from made) "
        "insert into survey_rounds (organisation_id, ref, survey_id, "
        "site_id, name, delay, opened_at, follows_id) select $1, $3, made.id, $4, $5, '0', $8, "
        "first.id from made, first",
        *(organisation, names["survey"], names["round"], site, words, bytes(32)),
        b'{"languages":["en"],"title":{"en":"A"},"why":{"en":"A"},"factors":[],"items":'
        b'[{"key":"all","kind":"overall","text":{"en":"A"}}]}',
        *(NOW, names["offer"], spot),
    )
    await owner.execute(
        "with raised as (insert into opinion_alerts (organisation_id, ref, site_id, spot_id, "
        "cause, questionnaire, question, raised_at, since, n, bad, expected, p, "
        "false_alarms_per_week, filter_version, assignee) values ($1, $2, $3, $4, "
        "'dissatisfaction', 0, 0, $8, $8, 9, 8, 1, 0, 1, 1, $7) returning id), "
        "met as (insert into touchpoints (organisation_id, ref, name) values ($1, $5, $7) "
        "returning id) insert into actions (organisation_id, ref, site_id, touchpoint_id, "
        "alert_id, title, owner, due_on, remeasure_on, made_at) select $1, $6, $3, met.id, "
        "raised.id, $7, $7, '2026-05-01', '2026-06-01', $8 from met, raised",
        *(organisation, names["alert"], site, spot, names["touchpoint"], names["action"], words),
        NOW,
    )
    await owner.execute(
        "insert into webhooks (organisation_id, ref, url, secret_sealed, created_at, "
        "place_dataset, place_xid, place_id, place_at) "
        "select $1, $2, 'https://example.com/' || $3, '', $4, id, 0, 0, $4 from dataset",
        *(organisation, names["webhook"], words, NOW),
    )
    await owner.execute(
        "insert into segments (organisation_id, ref, name, filter, follows, created_at, "
        "created_by) values ($1, $2, $3, '', 'live', $4, $3)",
        *(organisation, names["segment"], words, NOW),
    )
    device = await owner.fetchval(
        "insert into devices (organisation_id, device, kind, serial, model, state) "
        "values ($1, $2, 'counter', $3, $4, 'in service') returning id",
        *(organisation, names["device"], f"DC-{words}", names["model"]),
    )
    await owner.execute(
        "with asked as (insert into command_batches (organisation_id, ref, kind, reason, "
        "asked_by, asked_at, expires_at) values ($1, $2, 'log-tail', $3, $3, $4, "
        "$4::timestamptz + interval '1 day') returning id), made as (insert into commands "
        "(organisation_id, batch_id, ref, device_id, due_at) select $1, id, $5, $6, "
        "$4::timestamptz + interval '1 day' from asked returning id) insert into command_files "
        "select id, $1, convert_to($3, 'UTF8'), $4 from made",
        *(organisation, names["batch"], words, NOW, names["command"], device),
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange(null, null))",
        *(organisation, device, spot),
    )
    await in_trouble(owner, names, organisation, words)
    await on_its_way(owner, names, organisation, words)
    await owner.execute(
        "insert into technician_claims (organisation_id, ref, user_id, device_id, spot_id, since, "
        "expires_at) select $1, $2, id, $3, $4, $5, $5 from users where ref = $6",
        *(organisation, names["claim"], device, spot, NOW, names["user"]),
    )


async def in_trouble(
    owner: asyncpg.Connection, names: dict[str, str], organisation: int, words: str
) -> None:
    """Give an organisation an incident, whom it is told, and all that belongs to it."""
    await owner.execute(
        "with broken as (insert into incidents (organisation_id, ref, key, subject, subject_id, "
        "condition, severity, site_id, device_id, since, opened_at, ready_at, owner) "
        "select $1, $2, $2, 'device', d.id, 'flapping', 'minor', s.id, d.id, $4, $4, $4, $3 "
        "from devices d, sites s where d.organisation_id = $1 and s.organisation_id = $1 limit 1 "
        "returning *), episode as (insert into episodes (organisation_id, incident_id, subject, "
        "subject_id, condition, site_id, device_id, since, opened_at) select organisation_id, id, "
        "subject, subject_id, condition, site_id, device_id, since, opened_at from broken), "
        "decided as (insert into incident_decisions (organisation_id, incident_id, at, decision, "
        "why, about) select organisation_id, id, $4, 'held', 'wait', $3 from broken), "
        "said as (insert into incident_comments (organisation_id, incident_id, at, author, words) "
        "select organisation_id, id, $4, $3, $3 from broken), "
        "rules as (insert into health_rules values ($1, 1, '{}', $4, $3)), "
        "silent as (insert into health_windows (organisation_id, ref, kind, reason, author, "
        "site_id, starts_at, ends_at) select organisation_id, $5, 'visit', $3, $3, site_id, $4, "
        "$4::timestamptz + interval '1 day' from broken), "
        "told as (insert into health_contacts (organisation_id, ref, name, email, severity, "
        "time_zone, weekdays, from_min, until_min, created_at) "
        "values ($1, $6, $3, $3, 'major', 'UTC', '{0}', 0, 0, $4) returning id) "
        "insert into notices (organisation_id, incident_id, contact_id, dedupe, subject, body, "
        "queued_at, dead_at) select $1, broken.id, told.id, $2, $3, $3, $4, $4 from broken, told",
        *(organisation, names["incident"], words, NOW, names["window"], names["contact"]),
    )


async def on_its_way(
    owner: asyncpg.Connection, names: dict[str, str], organisation: int, words: str
) -> None:
    """Give an organisation a rollout, a device in it, and all that belongs to it."""
    await owner.execute(
        "insert into releases (ref, component, version, floor, target, length, sha256, hardware, "
        "published_at) values ('release-common', 'agent', '2.5.0', '2.0.0', 'agent/2.5.0.tar', 9, "
        "repeat('0', 64), '{DC2}', $1) on conflict do nothing",
        NOW,
    )
    await owner.execute(
        "insert into bundles (ref, name, releases, created_at) select 'bundle-common', 'common', "
        "array[id], $1 from releases on conflict do nothing",
        NOW,
    )
    await owner.execute(
        "with moved as (insert into rollouts (organisation_id, ref, name, payload, bundle_id, "
        "policy, state, since, author) select $1, $2, $3, 'bundle', id, "
        "'{\"ramp\": {\"top\": 900}}', 'running', $4, $3 "
        "from bundles returning *), told as (insert into rollout_events (organisation_id, "
        "rollout_id, at, event, actor, reason, counters) select organisation_id, id, $4, "
        "'started', $3, $3, '{}' from moved), wave as (insert into waves (rollout_id, number, "
        "organisation_id, size) select id, 1, organisation_id, 1 from moved), done as (insert "
        "into executions (organisation_id, ref, rollout_id, wave, pool, device_id, code) select "
        "$1, $5, moved.id, 1, 1, d.id, $3 from moved, devices d where d.organisation_id = $1 "
        "order by d.id limit 1 returning *), said as (insert into execution_reports "
        "(execution_id, attempt, seq, organisation_id, phase, heard_at, code) select id, 1, 1, "
        "organisation_id, 'accepted', $4, $3 from done), runs as (insert into device_firmware "
        "(device_id, organisation_id, hardware) select device_id, $1, $3 from done) "
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, "
        "created_at) values ($1, $6, $3, $4::timestamptz + interval '9 days', "
        "$4::timestamptz + interval '10 days', $3, $3, $4)",
        *(organisation, names["rollout"], words, NOW, names["execution"], names["freeze"]),
    )


async def state_of(people: People) -> str:
    """Return a digest of all that belongs to the other organisation."""
    other, found = people.organisations["other"], []
    tables = await people.owner.fetch(
        "select table_name as name from information_schema.columns c join pg_tables t "
        "on t.tablename = c.table_name where t.schemaname = 'public' "
        "and c.column_name = 'organisation_id' and table_name <> 'sessions' order by 1"
    )
    for table in tables:
        found += await people.owner.fetch(
            f"select t::text from {table['name']} t where organisation_id = $1 order by 1", other
        )
    for sql in (
        "select t::text from organisations t where id = $1",
        "select t::text from audit t where chain = $1 order by 1",
        "select (u.ref, u.name, u.password_hash, u.disabled_at, s.ended_at)::text from users u "
        "join grants g on g.user_id = u.id left join sessions s on s.user_id = u.id "
        "where g.organisation_id = $1 order by 1",
    ):
        found += await people.owner.fetch(sql, other)
    return hashlib.sha256("\n".join(str(row[0]) for row in found).encode()).hexdigest()
