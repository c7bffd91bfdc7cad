"""What serves nobody any more is deleted, and nothing else can be."""

from datetime import timedelta

import asyncpg
import pytest

from ops.services.stack import Stack
from server.db.engine import open_pool
from server.db.purge import KEPT, purge
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services
LONG_AGO, LATELY = NOW - KEPT - timedelta(seconds=1), NOW - KEPT + timedelta(seconds=1)
LATER = NOW + timedelta(days=1)
QUARTER_AGO = NOW - timedelta(days=90)
TWO_YEARS_AGO = NOW - KEPT - timedelta(days=730)


async def fill(people: People) -> None:
    """Of each kind some that are long over, some lately, some not at all; the last are kept."""
    own, user = people.organisations["own"], await people.user(password=None)
    await people.owner.executemany(
        "insert into sessions (user_id, token_sha256, csrf_sha256, expires_at, ended_at, browser) "
        "values ($1, sha256($2::text::bytea), sha256('c'), $3, $4, $2)",
        [
            (user, "gone: ended", LATER, LONG_AGO),
            (user, "gone: expired", LONG_AGO, None),
            (user, "ended", LATER, LATELY),
            (user, "expired", LATELY, None),
            (user, "going on", LATER, None),
        ],
    )
    await people.owner.executemany(
        "insert into one_time_links (token_sha256, user_id, purpose, expires_at, used_at) "
        "values (sha256($2::text::bytea), $1, 'invitation', $3, $4)",
        [
            (user, "gone: used", LATER, LONG_AGO),
            (user, "gone: expired", LONG_AGO, None),
            (user, "used", LATER, LATELY),
            (user, "expired", LATELY, None),
            (user, "unused", LATER, None),
        ],
    )
    for at in (LONG_AGO, LATELY):
        await people.owner.execute(
            "insert into phone_acts (user_id, act_ref, organisation_id, act, done_at, answer) "
            "values ($1, $2, $3, 'device bound', $4, '{}')",
            *(user, f"act {at}", own, at),
        )
        await people.owner.execute(
            "insert into idempotency_keys (organisation_id, caller, key, request_sha256, "
            "created_at) values ($1, 'user', $2, sha256('request'), $3)",
            *(own, f"key {at}", at),
        )
    survey = await people.owner.fetchval(
        "insert into surveys (organisation_id, ref, name, version, population, hash, content, "
        "made_at, made_by) values ($1, 'survey', '', 1, 'visitors', sha256(''), '', $2, '') "
        "returning id",
        *(own, NOW),
    )
    about = (
        "insert into {} (organisation_id, survey_id, site_id, channel, touchpoint, delay, {}) "
        "select $1, $2, id, 'link', '', '0', {} from sites where organisation_id = $1"
    )
    for at in (LONG_AGO, LATELY):
        await people.owner.execute(
            about.format(
                *("survey_tokens", "kept, kept_code, made_at, expires_at"),
                "$3::text::bytea, ('c' || $3::text)::bytea, $4, $4",
            ),
            *(own, survey, str(at.second), at),
        )
    for at in (QUARTER_AGO - timedelta(hours=1), QUARTER_AGO + timedelta(hours=1)):
        await people.owner.execute(
            "with d as (insert into devices (organisation_id, device, kind) "
            "values ($1, $2, 'counter') returning id) insert into device_events "
            "(organisation_id, device_id, at, kind) select $1, id, $3, 'boot' from d",
            *(own, f"dc-purge-{at.hour:02d}", at),
        )
    for at in (TWO_YEARS_AGO - timedelta(hours=1), TWO_YEARS_AGO + timedelta(hours=1)):
        await people.owner.execute(
            about.format(
                *("survey_answers", "once, digest, seen, answers, words, locale, answered_at"),
                "$3::text::bytea, '', '{}', '{}', '', 'en', $4",
            ),
            *(own, survey, str(at.hour), at),
        )


async def fall_ill(people: People) -> None:
    """Two incidents that ended long ago, of which one has an episode that did later."""
    hour = timedelta(hours=1)
    for number, at in enumerate((TWO_YEARS_AGO - 30 * hour, TWO_YEARS_AGO + hour)):
        await people.owner.execute(
            "with broken as (insert into incidents (ref, key, subject, subject_id, condition, "
            "severity, state, since, opened_at, ended_at, ready_at) select $1, $1, 'platform', 0, "
            "'platform_unknown', 'critical', 'resolved', $2, $2, $2, $2 returning id), "
            "episode as (insert into episodes (incident_id, subject, subject_id, condition, since, "
            "opened_at, resolved_at, resolved) select id, 'platform', 0, 'platform_unknown', $2, "
            "$2, $2, 'clear' from broken), "
            "decided as (insert into incident_decisions (incident_id, at, decision, why) "
            "select id, $3, 'held', 'wait' from broken), "
            "told as (insert into health_contacts (ref, name, email, severity, time_zone, "
            "weekdays, from_min, until_min, created_at) values ($1, '', '', 'info', 'UTC', '{0}', "
            "0, 0, $2) returning id) "
            "insert into notices (contact_id, dedupe, subject, body, queued_at, sent_at) "
            "select id, $1, '', '', $4, $4 from told",
            *(f"old-{number}", at, QUARTER_AGO - hour if number else NOW),
            LATELY if number else LONG_AGO,
        )


async def test_what_is_over_is_kept_for_thirty_days_and_then_deleted(
    people: People, stack: Stack, world_database: str
) -> None:
    await fill(people)
    await fall_ill(people)
    async with open_pool(stack.endpoints.dsn("maint", world_database), size=1, name="m") as pool:
        gone = await purge(pool, now=NOW)
        once = dict.fromkeys(("phone_acts", "idempotency_keys", "survey_tokens"), 1)
        once |= {"survey_answers": 1, "changes": 0, "device_events": 1}
        once |= dict.fromkeys(("command_files", "commands", "command_batches"), 0)
        once |= dict.fromkeys(("notices", "incident_decisions", "episodes", "incidents"), 1)
        assert gone == {"sessions": 2, "one_time_links": 2, **once}
        assert set((await purge(pool, now=NOW)).values()) == {0}
    kept = await people.owner.fetch("select browser from sessions order by id")
    assert [row["browser"] for row in kept] == ["ended", "expired", "going on"]
    for table, at, kept in (
        ("phone_acts", "done_at", LATELY),
        ("idempotency_keys", "created_at", LATELY),
        ("survey_tokens", "expires_at", LATELY),
        ("device_events", "at", QUARTER_AGO + timedelta(hours=1)),
        ("survey_answers", "answered_at", TWO_YEARS_AGO + timedelta(hours=1)),
        ("incidents", "ended_at", TWO_YEARS_AGO + timedelta(hours=1)),
        ("episodes", "resolved_at", TWO_YEARS_AGO + timedelta(hours=1)),
        ("notices", "sent_at", LATELY),
    ):
        assert await people.owner.fetchval(f"select {at} from {table}") == kept


@pytest.mark.parametrize("table", ["audit", "findings", "claims", "technician_claims", "users"])
async def test_who_purges_can_delete_nothing_that_says_what_was_done(
    people: People, stack: Stack, world_database: str, table: str
) -> None:
    async with open_pool(stack.endpoints.dsn("maint", world_database), size=1, name="m") as pool:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(f"delete from {table}")


@pytest.mark.parametrize("column", ["token_sha256", "csrf_sha256", "address"])
async def test_who_purges_reads_no_session(
    people: People, stack: Stack, world_database: str, column: str
) -> None:
    async with open_pool(stack.endpoints.dsn("maint", world_database), size=1, name="m") as pool:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.fetch(f"select {column} from sessions")
