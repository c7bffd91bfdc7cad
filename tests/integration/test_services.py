"""The embedded services: up, killed, back, and refusing with a sentence that helps."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import asyncpg
import pytest

from ops.services.errors import PortTakenError, ServicesError
from ops.services.stack import Endpoints, Stack

pytestmark = pytest.mark.services


async def _connect(endpoints: Endpoints, role: str, *, database: str) -> asyncpg.Connection:
    return await asyncpg.connect(endpoints.dsn(role, database))


async def test_up_on_a_running_stack_changes_nothing(stack: Stack) -> None:
    before = stack.status()
    assert stack.up() == stack.endpoints
    assert stack.status() == before


@pytest.mark.parametrize("role", ["owner", "ingest", "api", "maint"])
async def test_each_role_signs_in_without_special_rights(
    stack: Stack, database: str, role: str
) -> None:
    connection = await _connect(stack.endpoints, role, database=database)
    try:
        rights = await connection.fetchrow(
            "select rolsuper, rolbypassrls, rolcreaterole from pg_roles where rolname = user"
        )
        assert tuple(rights) == (False, False, False)
    finally:
        await connection.close()


async def test_a_wrong_password_is_refused(stack: Stack, database: str) -> None:
    dsn = stack.endpoints.dsn("api", database).replace(stack.endpoints.passwords["api"], "guess")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(dsn)


async def test_a_fresh_database_makes_hypertables_with_the_apache_edition(
    stack: Stack, database: str
) -> None:
    connection = await _connect(stack.endpoints, "owner", database=database)
    try:
        await connection.execute("create table reading (at timestamptz not null, n int)")
        await connection.execute("select create_hypertable('reading', by_range('at'))")
        assert await connection.fetchval("show timescaledb.license") == "apache"
    finally:
        await connection.close()


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_durability_is_on_in_tests_too(stack: Stack, database: str, setting: str) -> None:
    connection = await _connect(stack.endpoints, "api", database=database)
    try:
        assert await connection.fetchval(f"show {setting}") == "on"
    finally:
        await connection.close()


def test_secrets_and_keys_are_closed_to_others(stack: Stack) -> None:
    root = stack.root
    for path in (root / "secrets.json", *(root / "pki").glob("*.key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "broker").stat().st_mode) == 0o700


@pytest.fixture
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A stack that no other test uses, not started."""
    return Stack(tmp_path_factory.mktemp("own") / "stack", role="test")


def test_a_killed_database_comes_back_with_what_was_committed(own_stack: Stack) -> None:
    try:
        own_stack.up()
        postgres = own_stack.postgres
        postgres.execute("create table kept as select 42 as n", database="vestibule")
        first = postgres.pid
        postgres.kill()
        assert not postgres.running
        postgres.start()
        postgres.wait_ready()
        assert postgres.pid != first
        assert postgres.execute("select n from kept", database="vestibule").strip() == "42"
    finally:
        own_stack.remove()
    assert not own_stack.root.exists()


def test_a_taken_port_is_named(own_stack: Stack, tmp_path: Path) -> None:
    try:
        own_stack.up()
        own_stack.down()
        port = own_stack.endpoints.pg_port
        with socket.socket() as squatter:
            squatter.bind(("127.0.0.1", port))
            squatter.listen()
            with pytest.raises(PortTakenError, match=str(port)):
                own_stack.up()
    finally:
        own_stack.remove()


def test_asking_for_endpoints_before_up_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServicesError, match="services up"):
        _ = Stack(tmp_path / "nothing").endpoints
