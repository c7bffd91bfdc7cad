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


async def test_what_is_over_is_kept_for_thirty_days_and_then_deleted(
    people: People, stack: Stack, world_database: str
) -> None:
    await fill(people)
    async with open_pool(stack.endpoints.dsn("maint", world_database), size=1, name="m") as pool:
        gone = await purge(pool, now=NOW)
        assert gone == {"sessions": 2, "one_time_links": 2, "phone_acts": 1, "idempotency_keys": 1}
        assert set((await purge(pool, now=NOW)).values()) == {0}
    kept = await people.owner.fetch("select browser from sessions order by id")
    assert [row["browser"] for row in kept] == ["ended", "expired", "going on"]
    for table, at in (("phone_acts", "done_at"), ("idempotency_keys", "created_at")):
        assert await people.owner.fetchval(f"select {at} from {table}") == LATELY


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
