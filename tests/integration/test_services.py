"""The embedded services: up, killed, back, and refusing with a sentence that helps."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from ops.broker.configuration import dynamic_security
from ops.services import packages
from ops.services.account import Account, service_account
from ops.services.errors import (
    AccountError,
    DiskShortError,
    NotOursError,
    OfflineError,
    PlatformError,
    PortTakenError,
    ServicesError,
)
from ops.services.stack import SERVICES, Endpoints, Stack

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
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", port))
            squatter.listen()
            with pytest.raises(PortTakenError, match=str(port)):
                own_stack.up()
    finally:
        own_stack.remove()


def test_asking_for_endpoints_before_up_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServicesError, match="services up"):
        _ = Stack(tmp_path / "nothing").endpoints


def test_a_configured_database_is_used_and_never_stopped(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = stack.endpoints
    monkeypatch.setenv("VESTIBULE_DATABASE_URL", endpoints.dsn("admin"))
    host, port = endpoints.broker_host, endpoints.broker_device_port
    monkeypatch.setenv("VESTIBULE_BROKER_URL", f"mqtts://{host}:{port}")
    other = Stack(tmp_path / "other", role="test")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/secrets.json").write_text((stack.root / "secrets.json").read_text())
    assert other.up().pg_port == endpoints.pg_port
    assert all(state.running and state.pid is None for state in other.status())
    with pytest.raises(NotOursError, match="not ours"):
        other.postgres.kill()
    with pytest.raises(NotOursError, match="not ours"):
        other.broker.kill()
    other.remove()
    assert stack.postgres.running
    assert stack.broker.running


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql://", "host:5432"])
def test_a_url_that_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("VESTIBULE_DATABASE_URL", url)
    with pytest.raises(NotOursError, match="must look like"):
        Stack(tmp_path / "stack").up()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """An account like ours, with nothing in its cache."""
    with tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o755)  # pytest's own directories are closed to the services' account
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        yield service_account()


def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lead apt into a proxy that nobody runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f'Acquire::http::Proxy "http://127.0.0.1:{port}";', 'Acquire::Retries "0";']
    monkeypatch.setattr(packages, "_transport_settings", lambda: settings)


def test_without_network_and_cache_the_error_says_what_to_do(
    empty_cache: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_network(monkeypatch)
    with pytest.raises(OfflineError, match="connect to the network once"):
        packages.unpacked(SERVICES, account=empty_cache, progress=print)


def test_without_debian_packages_the_error_says_what_to_install(
    empty_cache: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlatformError, match="install PostgreSQL 17"):
        packages.unpacked(SERVICES, account=empty_cache, progress=print)


def test_a_short_disk_is_told_before_anything_is_fetched(empty_cache: Account) -> None:
    greedy = replace(SERVICES, megabytes=10**9)
    with pytest.raises(DiskShortError, match="make room"):
        packages.unpacked(greedy, account=empty_cache, progress=print)


def test_an_account_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # only root becomes someone else
    monkeypatch.setenv("VESTIBULE_SERVICE_USER", "nobody-by-that-name")
    with pytest.raises(AccountError, match="nobody-by-that-name"):
        service_account()


def test_a_deny_list_that_cannot_be_read_lets_nobody_back_in() -> None:
    with pytest.raises(ServicesError, match="deny-list"):
        dynamic_security('{"clients": [{"username": "dc-')
