"""`vestibule user`, `key` and `audit` on a real database."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ops.command import main
from ops.services.stack import Stack
from server.people.links import Purpose, look
from tests.deployed import deployed
from tests.emptying import empty

pytestmark = pytest.mark.services
Say = Callable[..., str]


class Store:
    """The owner's way into the database, for tests that run commands (which run loops)."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def run(self, act: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            connection = await asyncpg.connect(self._dsn)
            try:
                return await act(connection)
            finally:
                await connection.close()

        return asyncio.run(inside())

    def value(self, sql: str, *values: object) -> Any:
        return self.run(lambda connection: connection.fetchval(sql, *values))


@pytest.fixture
def store(
    stack: Stack, world_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Store:
    """An emptied database with two organisations, named by the environment."""
    deployed(monkeypatch, stack, world_database, pki=tmp_path)
    monkeypatch.setenv("VESTIBULE_PUBLIC_URL", "https://vestibule.example")
    found = Store(stack.endpoints.dsn("owner", world_database))
    found.run(empty)
    for name in ("own", "other"):
        found.value(
            "with o as (insert into organisations (ref, name) values ($1, $1) returning id) "
            "insert into sites (organisation_id, ref, name, time_zone) "
            "select id, $1 || '-site', $1, 'UTC' from o",
            name,
        )
    return found


@pytest.fixture
def say(store: Store, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command that must succeed (or `code=`), and return what it prints."""

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        done = main(list(words))
        printed = capsys.readouterr()
        assert done == code, printed
        return printed.out + printed.err

    return run


def test_a_user_begins_with_a_link_and_no_password(store: Store, say: Say) -> None:
    said = say("user", "add", "Ada@example.com", "--role", "analyst", "--organisation", "own")
    link = re.search(r"https://vestibule\.example/invitation\?token=([\w-]{43})\n", said)
    assert link is not None
    assert store.value("select password_hash from users") is None
    assert link[1] not in str(store.run(lambda c: c.fetch("select * from one_time_links")))
    now = store.value("select now()")
    holder = store.run(lambda c: look(c, link[1], Purpose.INVITATION, now=now))
    assert holder.email == "Ada@example.com"
    assert "ada@example.com" in say("user", "add", "ada@example.com", "--role", "noc", code=1)
    assert store.value("select count(*) from grants") == 1
    assert "analyst own" in say("user", "list")


def test_roles_are_given_where_they_hold_and_taken_away(store: Store, say: Say) -> None:
    say("user", "add", "ada@example.com", "--role", "administrator")
    say("user", "grant", "ada@example.com", "--role", "store-manager", "--site", "own-site")
    assert "administrator everywhere; store manager own own-site" in say("user", "list")
    refused = say(
        *("user", "grant", "ada@example.com", "--role", "technician"),
        *("--organisation", "own", "--site", "other-site"),
        code=1,
    )
    assert "other-site" in refused
    assert "held already" in say("user", "grant", "ada@example.com", "--role", "administrator")
    say("user", "revoke", "ada@example.com", "--role", "administrator")
    say("user", "revoke", "ada@example.com", "--role", "administrator", code=1)
    assert "everywhere" not in say("user", "list")
    with pytest.raises(SystemExit):
        main(["user", "grant", "ada@example.com", "--role", "king"])


def test_who_is_disabled_gets_no_link_until_enabled(store: Store, say: Say) -> None:
    say("user", "add", "ada@example.com", "--role", "noc")
    assert "0 sessions ended" in say("user", "disable", "ada@example.com")
    assert "disabled" in say("user", "list")
    assert "disabled" in say("user", "reset", "ada@example.com", code=1)
    say("user", "disable", "ada@example.com", code=1)
    say("user", "enable", "ada@example.com")
    assert "/invitation?token=" in say("user", "reset", "ada@example.com")
    store.value(
        "update users set password_hash = 'x', totp_sealed = 'x', totp_confirmed_at = now()"
    )
    assert "/password?token=" in say("user", "reset", "ada@example.com", "--codes")
    assert store.value("select totp_confirmed_at from users") is None
    assert "no user" in say("user", "disable", "nobody@example.com", code=1)


def test_a_key_is_rotated_with_an_overlap_and_revoked_at_once(store: Store, say: Say) -> None:
    key = say("key", "add", "own", "--note", "till", "--expires", "90d").splitlines()[0]
    prefix = key.split("_")[1]
    said = say("key", "rotate", prefix, "--overlap", "2h").splitlines()[0]
    made = said.split("_")[1]
    left = store.value("select expires_at - now() from api_keys where prefix = $1", prefix)
    assert 7100 < left.total_seconds() <= 7200
    assert store.value("select expires_at from api_keys where prefix = $1", made) is None
    say("key", "rotate", prefix, code=1)
    assert f"succeeded by vk_{made}" in say("key", "list")
    holder = "select organisation_id from api_key_holder($1)"
    assert store.value(holder, prefix) is not None
    store.value("update api_keys set expires_at = now() where prefix = $1", prefix)
    assert store.value(holder, prefix) is None
    say("key", "revoke", f"vk_{made}")
    assert store.value(holder, made) is None
    say("key", "revoke", made, code=1)
    shown = say("audit", "show", "--organisation", "own")
    assert [line.split("\t")[4] for line in shown.splitlines()] == [
        *("key created", "key created", "key rotated", "key revoked")
    ]
    assert key not in shown
    for span in ("7", "d7", "1w", ""):
        with pytest.raises(SystemExit):
            main(["key", "rotate", made, "--overlap", span])


def test_an_altered_row_is_named(store: Store, say: Say, tmp_path: Path) -> None:
    say("user", "add", "ada@example.com", "--role", "analyst", "--organisation", "own")
    say("user", "add", "eva@example.com", "--role", "noc")
    heads = tmp_path / "heads.json"
    assert "all hold" in say("audit", "verify", "--note", str(heads))
    own = store.value("select id from organisations where ref = 'own'")
    say("user", "grant", "eva@example.com", "--role", "analyst", "--organisation", "own")
    assert "all hold" in say("audit", "verify", "--head", str(heads))
    store.value("update audit set actor = 'nobody' where chain = $1 and number = 2", own)
    said = say("audit", "verify", code=1)
    assert f"chain {own}, row 2: was altered" in said
    before = heads.read_text()
    say("audit", "verify", "--note", str(heads), code=1)
    assert heads.read_text() == before


def test_a_chain_whose_end_was_cut_off_is_known_by_its_noted_head(
    store: Store, say: Say, tmp_path: Path
) -> None:
    say("user", "add", "ada@example.com", "--role", "analyst", "--organisation", "own")
    heads = tmp_path / "heads.json"
    say("audit", "verify", "--note", str(heads))
    own = store.value("select id from organisations where ref = 'own'")
    store.value("delete from audit where chain = $1", own)
    say("audit", "verify")
    said = say("audit", "verify", "--head", str(heads), code=1)
    assert f"chain {own}, row 2: the row that was noted elsewhere is not there" in said
    heads.write_text("[]")
    assert "not what --note writes" in say("audit", "verify", "--head", str(heads), code=1)


def test_acts_are_shown_by_time_organisation_and_kind(store: Store, say: Say) -> None:
    say("user", "add", "ada@example.com", "--role", "analyst", "--organisation", "own")
    say("user", "add", "eva@example.com", "--role", "noc")
    assert len(say("audit", "show").splitlines()) == 6
    assert len(say("audit", "show", "--act", "role granted").splitlines()) == 2
    assert say("audit", "show", "--since", "2999-01-01") == ""
    assert len(say("audit", "show", "--organisation", "own").splitlines()) == 2
