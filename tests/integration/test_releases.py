"""Releases as rows: what was signed, once each, withdrawn and audited."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.release import Release, target_path
from server.errors import ConflictError, NotFoundError
from server.firmware.releases import find, listed, note_published, withdraw
from server.firmware.repository import Target

pytestmark = pytest.mark.services

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def target(version: str, digest: str = "ab", *, requires: str | None = None) -> Target:
    release = Release("agent", version, "1.0.0", requires, ("DC2", "DC3"), f"What {version} brings")
    sha256 = digest * 32
    return Target(target_path("agent", version, sha256), 10_240, sha256, release)


@pytest.fixture
async def connection(stack: Stack, database: str) -> AsyncIterator[asyncpg.Connection]:
    found = await asyncpg.connect(stack.endpoints.dsn("owner", database))
    yield found
    await found.close()


async def publish(
    connection: asyncpg.Connection, *targets: Target, now: datetime = NOW
) -> tuple[list[str], list[str]]:
    async with connection.transaction():
        return await note_published(connection, targets, actor="command", now=now)


async def acts(connection: asyncpg.Connection) -> list[tuple[str, str]]:
    rows = await connection.fetch("select act, subject from audit where chain = 0 order by number")
    return [(row["act"], row["subject"]) for row in rows]


async def test_rows_say_what_the_signed_targets_say(connection: asyncpg.Connection) -> None:
    first, second = target("1.1.0"), target("1.2.0", "cd", requires="1.1.0")
    assert await publish(connection, first) == (["agent 1.1.0"], [])
    later = NOW + timedelta(days=1)
    assert await publish(connection, first, second, now=later) == (["agent 1.2.0"], [])
    assert await publish(connection, first, second, now=later) == ([], [])
    rows = await listed(connection)
    assert [(row.target, row.published_at) for row in rows] == [(second, later), (first, NOW)]
    assert all(row.ref.startswith("rel-") and row.withdrawn_at is None for row in rows)
    assert await acts(connection) == [
        ("release published", "agent 1.1.0"),
        ("release published", "agent 1.2.0"),
    ]


async def test_a_release_that_is_withdrawn_stays_so(connection: asyncpg.Connection) -> None:
    await publish(connection, target("1.1.0"))
    later = NOW + timedelta(hours=1)
    await withdraw(connection, "agent", "1.1.0", actor="user u-1", now=later)
    with pytest.raises(ConflictError, match="was withdrawn on 2026-11-22"):
        await withdraw(connection, "agent", "1.1.0", actor="user u-1", now=later)
    with pytest.raises(NotFoundError):
        await withdraw(connection, "agent", "9.9.9", actor="user u-1", now=later)
    assert await publish(connection, target("1.1.0")) == ([], [])
    assert (await find(connection, "agent", "1.1.0")).withdrawn_at == later
    assert (await acts(connection))[-1] == ("release withdrawn", "agent 1.1.0")


async def test_what_is_signed_away_is_withdrawn(connection: asyncpg.Connection) -> None:
    await publish(connection, target("1.1.0"), target("1.2.0", "cd"))
    assert await publish(connection, target("1.2.0", "cd")) == ([], ["agent 1.1.0"])
    assert (await find(connection, "agent", "1.1.0")).withdrawn_at == NOW
    assert (await find(connection, "agent", "1.2.0")).withdrawn_at is None


async def test_one_version_has_one_content_for_ever(connection: asyncpg.Connection) -> None:
    await publish(connection, target("1.1.0"))
    with pytest.raises(ConflictError, match="with other bytes"):
        await publish(connection, target("1.1.0", "cd"))
    assert [row.target for row in await listed(connection)] == [target("1.1.0")]
