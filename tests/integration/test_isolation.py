"""An organisation sees itself alone: through every route, parameter and cursor, and in SQL."""

import base64
import json
import re
from typing import Any

import asyncpg
import pytest

from server.api import routes
from server.db.engine import reading
from server.rollup.refresh import LOCK
from tests.integration.api_world import World, utc
from tests.integration.isolation_world import in_trouble, on_its_way

pytestmark = pytest.mark.services

RANGE = "from=2026-03-03&to=2026-03-05"
NAMELESS = ("/settings:table", "/definitions", "/experiments:learning", "/comparison", "/stability")
READS = [each for each in routes.READS if each.method == "GET" and each.path not in NAMELESS]
"""Definitions are everyone's, and a question that is a body is asked in test_metrics_form. Of what
names nothing, or needs many sites, another's answer is looked at in test_experiments."""
NAMES_NOTHING = (
    *("/alarm-settings", "/calendar", "/periods", "/device-fields"),
    *("/releases", "/bundles"),  # the operator's
)
"""What these answer has no name of anything in it, whoever asks."""
HYPERTABLES = (
    "readings",
    "presses",
    "device_metrics",
    "quarantine",
    "rollup_15m",
    "presses_15m",
    "rollup_hour",
    "rollup_day",
    "presses_day",
    "responses_15m",
    "responses_day",
)
SIZES = ("1m", "15m", "hour", "day", "week", "month")


async def populate(world: World, name: str, *, visits: int) -> int:
    """Add an organisation with one of everything; all its names begin with its own."""
    organisation = await world.organisation(name)
    site = await world.site(organisation, f"{name}-site", hours=(600, 1200))
    counter = await world.spot(organisation, site, f"{name}-door")
    kiosk = await world.spot(organisation, site, f"{name}-kiosk", kind="kiosk")
    await world.minutes(counter, utc("2026-03-03T10:00"), [(visits, visits)] * 30)
    await world.presses(kiosk, utc("2026-03-03T10:00"), {0: visits}, questionnaire=0)
    owner = world.owner
    await owner.execute(
        "insert into experiments (organisation_id, ref, name, metrics, starts_on, weeks, "
        "pre_weeks, planned, created_at, created_by, sealed_at, design, seed, commitment, treated, "
        "decided_at, decision, result, snapshot, snapshot_sha256) values ($1, $2, $2, '{visits}', "
        "'2025-03-03', 8, 12, '[]', now(), $2, now(), $2, $3, $2, '{}', now(), 'kept', $4, $2, $2)",
        *(organisation, f"{name}-experiment", bytes(32)),
        json.dumps({"standing": "difference", "over_on": "2025-04-28", "estimator": name}),
    )
    await owner.execute(
        "insert into experiment_pairs select id, $1, 0, $2, $3, 0 from experiments "
        "where organisation_id = $1",
        *(organisation, site, await world.site(organisation, f"{name}-second")),
    )
    await owner.execute(
        "insert into presses values ($1, 0, $2, $2, 1, 1, 1, 0, 0, 0)",
        utc("2026-03-03T10:00"),
        kiosk,
    )
    await owner.execute("insert into metric_names (name) values ('m') on conflict do nothing")
    await owner.execute(
        "insert into device_metrics select $1, device_id, id, 1, 1, 1, 1 from boots where id = $2",
        utc("2026-03-03T10:00"),
        counter,
    )
    await owner.execute(
        "insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, "
        "until_at, reason, counts) select organisation_id, device_id, $1, $1, 1, 2, $2, $2, "
        "'rotted', '{9,9,0,0,0,0,0,0}' from assignments where spot_id = $1",
        counter,
        utc("2026-03-03T11:00"),
    )
    await owner.execute(
        "insert into undated_frames (boot, seq, reason, frame) values ($1, 1, 'undated', '')",
        counter,
    )
    await owner.execute(
        "insert into transactions (organisation_id, site_id, transaction_ref, at, amount) "
        "values ($1, $2, $3, $4, 10)",
        organisation,
        site,
        f"{name}-1",
        utc("2026-03-03T11:00"),
    )
    await owner.execute(
        "insert into kpi_targets (organisation_id, site_id, ref, metric, from_day, until_day, "
        "wanted) values ($1, $2, $3, 'visits.v1', '2026-03-01', '2026-04-01', 7)",
        *(organisation, site, f"{name}-target"),
    )
    await owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, factor) values ($1, $2, 3, 1)",
        organisation,
        counter,
    )
    await owner.execute(
        "with made as (insert into questionnaires (organisation_id, hash, name, definition, ref, "
        "content) values ($1, 5, $2, '{}', $2, $4) returning id) insert into publications "
        "(organisation_id, ref, questionnaire_id, site_id) select $1, $2, id, $3 from made",
        organisation,
        f"{name}-questions",
        site,
        b'{"format":1,"languages":["en"],"title":{"en":"A"},"questions":[]}',
    )
    await owner.execute(
        "with made as (insert into surveys (organisation_id, ref, name, version, population, hash, "
        "content, made_at, made_by) values ($1, $3 || '-survey', $3, 1, 'visitors', $4, $5, $6, "
        "'') returning id), first as (insert into survey_rounds (organisation_id, ref, survey_id, "
        "site_id, name, delay, opened_at) select $1, $3 || '-first', id, $2, $3, '0', $6 from made "
        "returning id), next as (insert into survey_rounds (organisation_id, ref, survey_id, "
        "site_id, name, delay, opened_at, follows_id) select $1, $3 || '-round', made.id, $2, $3, "
        "'0', $6, first.id from made, first), offered as (insert into survey_offers "
        "(organisation_id, ref, survey_id, site_id, offered_at) select $1, $3 || '-offer', id, $2, "
        "$6 from made) insert into survey_answers (organisation_id, "
        "survey_id, site_id, channel, touchpoint, delay, once, digest, seen, answers, words, "
        "locale, answered_at) select $1, id, $2, 'link', $3, '0', $3::bytea, '', '{}', "
        "'{\"all\": 1}', $3, 'en', $6 from made",
        *(organisation, site, name, bytes(32)),
        b'{"languages":["en"],"title":{"en":"A"},"why":{"en":"A"},"factors":[],"items":'
        b'[{"key":"all","kind":"overall","text":{"en":"A"}}]}',
        utc("2026-03-03T11:00"),
    )
    kinds = ("incident", "window", "contact", "rollout", "execution", "freeze")
    names = {kind: f"{name}-{kind}" for kind in kinds}
    await in_trouble(owner, names, organisation, name)
    await on_its_way(owner, names, organisation, name)
    return organisation


async def two(world: World) -> tuple[int, int]:
    own = await populate(world, "own", visits=1)
    other = await populate(world, "other", visits=100)
    await world.derive()
    await world.dirty(4, utc("2026-03-03T10:00"))  # the other's kiosk
    await world.owner.execute(
        "insert into regions (organisation_id, ref, name) select id, ref || '-region', '' "
        "from organisations; "
        "insert into mountings (organisation_id, spot_id, note) "
        "select organisation_id, id, ref from spots; "
        "insert into responses_15m select '2026-03-03T10:00Z', 0, id, 1, 0, 0, 0, 0, 1, 0, 0 "
        "from spots where kind = 'kiosk'; "
        "insert into responses_day select '2026-03-03', 0, id, 1, 0, 0, 0, 0, 1, 0, 0 "
        "from spots where kind = 'kiosk'; "
        "insert into alarm_settings select id, 1 from organisations; "
        "insert into segments (organisation_id, ref, name, filter, follows, created_at, "
        "created_by, taken_at) select id, ref || '-segment', ref, 'state = \"' || ref || '\"', "
        "'snapshot', now(), ref, now() from organisations; "
        "insert into segment_devices select s.id, d.id, s.organisation_id from segments s "
        "join devices d on d.organisation_id = s.organisation_id; "
        "insert into settings_layers (organisation_id, scope, site_id, entries, changed_at) "
        "select organisation_id, 'site', id, jsonb_build_object('health_s', jsonb_build_object("
        "'value', 300, 'number', 1, 'at', 0, 'by', ref)), '2026-03-03' from sites; "
        "insert into device_settings (device_id, organisation_id, told, told_at) "
        "select id, organisation_id, '{}', '2026-03-03' from devices; "
        "insert into command_batches (organisation_id, ref, kind, asked_by, asked_at, expires_at) "
        "select id, ref || '-batch', 'log-tail', ref, '2026-03-03', '2026-03-04' "
        "from organisations; "
        "insert into commands (organisation_id, batch_id, ref, device_id, due_at) "
        "select o.id, b.id, o.ref || '-command', d.id, '2026-03-04' from organisations o "
        "join command_batches b on b.organisation_id = o.id "
        "join devices d on d.organisation_id = o.id and d.device like '%-door'; "
        "insert into command_files select id, organisation_id, ref::bytea, '2026-03-03' "
        "from commands; "
        "insert into changes (organisation_id, kind, site_id, detail) "
        "select s.organisation_id, 'gap.opened', s.id, "
        "jsonb_build_object('gap', 0, 'reason', s.ref) from sites s; "
        "insert into webhooks (organisation_id, ref, url, secret_sealed, created_at, "
        "place_dataset, place_xid, place_id, place_at) select o.id, o.ref || '-webhook', o.ref, "
        "'', '2026-03-03', d.id, 0, 0, '2026-03-03' from organisations o, dataset d; "
        "insert into deliveries (organisation_id, webhook_id, change_id, trouble, queued_at) "
        "select c.organisation_id, w.id, c.id, w.url, '2026-03-03' from changes c "
        "join webhooks w on w.organisation_id = c.organisation_id "
        "where c.kind = 'gap.opened' and c.detail ->> 'gap' = '0'; "
        "insert into opinion_alerts (organisation_id, ref, site_id, spot_id, cause, questionnaire, "
        "question, raised_at, since, n, bad, expected, p, false_alarms_per_week, filter_version) "
        "select organisation_id, ref || '-alert', site_id, id, 'dissatisfaction', 0, 0, now(), "
        "now(), 9, 8, 1, 0, 1, 1 from spots where kind = 'kiosk'; "
        "insert into touchpoints (organisation_id, ref, name) select id, ref || '-till', ref "
        "from organisations; "
        "insert into actions (organisation_id, ref, site_id, touchpoint_id, title, owner, due_on, "
        "remeasure_on, made_at) select s.organisation_id, s.ref || '-action', s.id, t.id, s.ref, "
        "s.ref, '2026-03-01', '2026-04-01', now() from sites s "
        "join touchpoints t on t.organisation_id = s.organisation_id"
    )
    await world.owner.execute(
        "insert into recounts (organisation_id, ref, spot_id, method, counted_by, recorded_by, "
        "recorded_at) select organisation_id, ref || '-recount', id, 'manual', ref, ref, now() "
        "from spots where kind = 'counter'; "
        "insert into recount_blocks select organisation_id, id, '2026-03-03T10:00Z', 1, 1 "
        "from recounts; "
        "insert into staff_shifts (organisation_id, site_id, shift_ref, starts_at, ends_at) "
        "select organisation_id, id, ref, '2026-03-03T10:00Z', '2026-03-03T11:00Z' from sites; "
        "insert into campaigns (organisation_id, campaign_ref, name, channel, from_day, until_day, "
        "currency) select id, ref, ref, ref, '2026-03-03', '2026-03-03', 'SEK' from organisations; "
        "insert into campaign_sites select c.organisation_id, c.id, s.id from campaigns c "
        "join sites s on s.organisation_id = c.organisation_id; "
        "insert into exchange_rates select id, '2026-03-03', 'SEK', 'DKK', 1, ref "
        "from organisations; "
        "insert into device_events (organisation_id, device_id, at, kind) "
        "select organisation_id, id, '2026-03-03', 'boot' from devices; "
        "update device_events e set reason = d.device from devices d where d.id = e.device_id; "
        "insert into judgements (organisation_id, spot_id, condition, standing, since, judged_at, "
        "changed_at) select organisation_id, id, 'flatline', 'clear', now(), now(), now() "
        "from spots; "
        "insert into masks (organisation_id, spot_id, condition, from_at, until_at, set_at) "
        "select organisation_id, id, 'flatline', '2026-03-03T20:00Z', '2026-03-03T20:15Z', now() "
        "from spots; "
        "insert into users (ref, email, name) values ('user-walks', 'w@example.com', ''); "
        "insert into technician_claims (organisation_id, ref, user_id, device_id, spot_id, since, "
        "expires_at, signed_off_at, walk) select a.organisation_id, p.ref || '-claim', u.id, "
        'a.device_id, p.id, now(), now(), now(), \'{"begun_ms": 0, "until_ms": 0, "result": '
        '{"whole": true, "entered": {"walked": 1, "counted": 1}, "left": {"walked": 1, '
        '"counted": 1}}}\' from users u, assignments a join spots p on p.id = a.spot_id'
    )
    return own, other


def named(path: str, organisation: str) -> str:
    """Return a route's path with the organisation's own thing in it."""
    kinds = {
        "questionnaires": "questions",
        "experiments": "experiment",
        "webhooks": "webhook",
        "incidents": "incident",
        "segments": "segment",
        "surveys": "survey",
        "rounds": "round",
        "commands": "command",
        "batches": "batch",
        "rollouts": "rollout",
        "freezes": "freeze",
    }
    if path.startswith("/devices/"):
        return path.replace("{ref}", f"device-{organisation}-door")
    return path.replace("{ref}", f"{organisation}-{kinds.get(path.split('/')[1], 'site')}")


def paths() -> list[str]:
    found: list[str] = []
    for route in READS:
        fields = set(route.parameters.__struct_fields__)
        if "device" in fields:
            found.append(f"{named(route.path, 'own')}?device=device-own-door")
        elif "since" not in fields:
            found.append(named(route.path, "own"))
        elif "bucket" in fields and "scope" not in fields:
            found += [
                f"{route.path}?{RANGE}&bucket={size}&by={by}"
                for size in SIZES[2:]
                for by in ("site", "spot")
            ]
        elif "bucket" in fields:
            found += [
                f"{route.path}?{RANGE}&bucket={size}&by={by}&scope={scope}"
                for size in (SIZES if route.path == "/counts" else SIZES[1:])
                for by in ("site", "spot")
                for scope in ("all", "open")
            ]
        else:
            found.append(f"{named(route.path, 'own')}?{RANGE}")
    return found


async def test_no_route_shows_another_organisation(world: World) -> None:
    await two(world)
    for path in paths():
        text = json.dumps(await world.get(path))
        assert "other" not in text, path
        assert re.search(r"\bown\b", text) or path in NAMES_NOTHING, path
        numbers = re.sub(r"T\d\d:\d\d:\d\d\.\d+Z|100\.0", "", text)  # neither instants nor shares
        assert "100" not in numbers, path
        theirs = await world.get(path.replace("own-", "other-"), organisation="other")
        assert not re.search(r"\bown\b", json.dumps(theirs)), path


async def test_anothers_references_are_as_unknown_as_those_that_do_not_exist(
    world: World,
) -> None:
    await two(world)
    assert (await world.ask("/sites/other-site"))[0] == 404
    for route in READS:
        fields = set(route.parameters.__struct_fields__)
        path = named(route.path, "own")
        range_ = f"{RANGE}&" if "since" in fields else ""
        for field in {"site", "spot"} & fields:
            ref = {"site": "other-site", "spot": "other-door"}[field]
            answers = []
            for value in (ref, ref.replace("other", "nobody")):
                status, problem = await world.ask(f"{path}?{range_}{field}={value}")
                assert (status, problem["code"]) == (404, "unknown_place"), (route.path, field)
                answers.append(problem["detail"].replace(value, "?"))
            assert answers[0] == answers[1]
            status, _ = await world.ask(f"{path}?{range_}{field}=own-{ref[6:]},{ref}")
            assert status == 404


async def test_anothers_cursor_leads_nowhere(world: World) -> None:
    await two(world)
    for route in READS:
        fields = set(route.parameters.__struct_fields__)
        if "cursor" not in fields or "{" in route.path:  # within one thing, which is its owner's
            continue
        path = f"{route.path}?{RANGE}" if "since" in fields else f"{route.path}?limit=1"
        page = await world.get(f"{path}&limit=1".replace("limit=1&limit=1", "limit=1"),
                               organisation="other")  # fmt: skip
        cursors = [page["next"]] if page["next"] else []
        for position in (["", 0], ["other-site", 0], ["other-door", 0], ["", -1], ["~", 1 << 60]):
            bound = _bound_of(page["next"]) if page["next"] else "000000000000"
            text = json.dumps([bound, *position])
            cursors.append(base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))
        for cursor in cursors:
            status, body = await world.ask(f"{path}&cursor={cursor}")
            assert (status, body.get("code")) in ((200, None), (400, "bad_cursor")), path
            assert "other" not in json.dumps(body.get("data", "")), path


def _bound_of(cursor: str) -> str:
    raw: list[Any] = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return str(raw[0])


async def test_the_apis_role_reads_no_hypertable_and_no_chunk(world: World) -> None:
    await two(world)
    chunks = [
        row[0]
        for row in await world.owner.fetch(
            "select format('%I.%I', chunk_schema, chunk_name) from timescaledb_information.chunks"
        )
    ]
    assert len(chunks) >= len(HYPERTABLES) - 1  # nothing is in quarantine
    async with world.api.acquire() as connection:
        for table in (*HYPERTABLES, *chunks, "boots", "undated_frames", "rollup_dirty", "api_keys"):
            for statement in (f"select * from {table}", f"delete from {table}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)


async def test_every_view_and_table_shows_one_organisation_and_without_one_nothing(
    world: World,
) -> None:
    own, other = await two(world)
    readable = [
        row[0]
        for row in await world.owner.fetch(
            "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            "where n.nspname = 'public' and c.relkind in ('r', 'v') "
            "and has_table_privilege('vestibule_api', c.oid, 'select')"
        )
    ]
    common = {"dataset", "schema_compatibility", "metric_names", "platform", "platform_unknown"}
    common |= {"releases", "bundles"}  # the operator's
    empty = {"opening_exceptions", "doors", "backfill_grants", "my_rollup_stale"}
    assert {"my_readings", "my_rollup_dirty", "sites", "gaps"} <= set(readable)
    for name in set(readable) - common:
        seen: dict[int, list[str]] = {}
        for organisation in (own, other):
            async with reading(world.api, "test", organisation=organisation) as connection:
                rows = await connection.fetch(f"select * from {name}")
                seen[organisation] = sorted(map(str, rows))
        assert not set(seen[own]) & set(seen[other]), name
        if name not in empty | {"my_rollup_dirty"}:
            assert seen[own], name
            assert seen[other], name
        async with world.api.acquire() as connection:
            assert await connection.fetch(f"select * from {name}") == [], name


async def test_a_function_that_tells_what_it_is_given_is_given_own_rows_alone(
    world: World,
) -> None:
    own, _ = await two(world)
    noticed: list[str] = []
    async with world.api.acquire() as connection:

        def note(_: object, message: object) -> None:
            noticed.append(str(message))

        connection.add_log_listener(note)
        async with connection.transaction():
            await connection.execute("select set_config('app.organisation', $1, true)", str(own))
            await connection.execute(
                "create function pg_temp.leak(int) returns bool language plpgsql cost 0.0000001 "
                "as $$ begin raise notice 'saw %', $1; return true; end $$"
            )
            await connection.execute("select * from my_rollup_15m where pg_temp.leak(spot)")
            await connection.execute("select * from spots where pg_temp.leak(id)")
        connection.remove_log_listener(note)
    spots = {
        str(row[0]) for row in await world.owner.fetch("select id from spots where ref like 'own%'")
    }
    assert {text.split()[-1] for text in noticed if "saw" in text} == spots


async def test_what_one_answer_set_is_gone_for_the_next(world: World) -> None:
    own, _ = await two(world)
    async with reading(world.api, "test", organisation=own):
        pass
    for _ in range(8):
        async with world.api.acquire() as connection:
            assert await connection.fetchval("select current_organisation()") is None


async def test_an_answer_cannot_write(world: World) -> None:
    own, _ = await two(world)
    async with reading(world.api, "test", organisation=own) as connection:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("update transactions set amount = 0")


async def test_the_apis_role_cannot_keep_the_deriver_from_its_lock(world: World) -> None:
    async with world.api.acquire() as connection:
        for take in ("pg_advisory_lock", "pg_advisory_xact_lock_shared", "pg_try_advisory_lock"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"select {take}({LOCK})")
    async with world.maint.acquire() as connection:
        assert await connection.fetchval(f"select pg_try_advisory_lock({LOCK})")
        await connection.execute(f"select pg_advisory_unlock({LOCK})")


async def test_the_api_writes_nothing_at_all(world: World) -> None:
    async with world.api.acquire() as connection:
        rows = await connection.fetch(
            "select table_name, privilege_type from information_schema.role_table_grants "
            "where grantee = 'vestibule_api' and privilege_type <> 'SELECT'"
        )
    assert rows == []
