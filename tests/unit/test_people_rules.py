"""The rules of signing in that need no database: throttle, codes, seals, passwords, forms."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from server.clock import ManualClock
from server.config import Secret, Settings, SettingsError
from server.errors import RefusedError, UnavailableError
from server.people import totp
from server.people.passwords import (
    AT_ONCE,
    HASHER,
    MOST_WAITING,
    Passwords,
    demand_good,
)
from server.people.roles import Grant, Role
from server.people.sealing import Seal
from server.people.sessions import csrf_token, looked_at
from server.people.throttle import Throttle, TooManyTriesError, network
from server.people.users import demand_email, may_give
from server.signin.account import browser_words
from server.web.sessions import Sessions
from tests.authenticator import code_at

NOW = datetime(2026, 4, 2, 12, 0, tzinfo=UTC)
SEAL = Seal(Secret("s" * 32))
SECRET = bytes(range(20))
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


def throttle(clock: ManualClock, *, most_keys: int = 100) -> Throttle:
    return Throttle(
        free=3,
        first_s=1,
        most_s=60,
        forget_s=3600,
        monotonic=clock.monotonic,
        most_keys=most_keys,
    )


def wait_s(tries: Throttle, key: str = "a") -> float:
    """Return how long a key has to wait now."""
    try:
        tries.demand(key)
    except TooManyTriesError as error:
        return error.wait_s
    return 0.0


@given(st.lists(st.floats(0, 120), max_size=60))
def test_nobody_waits_longer_than_the_most_and_a_heard_try_is_never_refused(
    pauses: list[float],
) -> None:
    clock = ManualClock(0)
    tries = throttle(clock)
    for pause in pauses:
        clock.advance(pause)
        if (left := wait_s(tries)) > 0:
            with pytest.raises(TooManyTriesError):
                tries.begin("a")
            assert wait_s(tries) == left <= 60.001
        else:
            tries.begin("a")
            assert wait_s(tries) <= 60.001  # floats
    clock.advance(60.001)
    tries.begin("a")


def test_the_wait_doubles_and_a_try_that_waits_does_not_lengthen_it() -> None:
    clock = ManualClock(0)
    tries = throttle(clock)
    seen = []
    for _ in range(12):
        tries.begin("a")
        seen.append(wait_s(tries))
        for _ in range(5):
            if wait_s(tries):
                with pytest.raises(TooManyTriesError):
                    tries.begin("a")
        clock.advance(seen[-1])
    assert seen == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_many_tries_at_once_are_as_slow_as_one_after_another() -> None:
    tries = throttle(ManualClock(0))
    heard = 0
    for _ in range(200):
        try:
            tries.begin("a")
            heard += 1
        except TooManyTriesError:
            pass
    assert heard == 4


def test_what_did_not_fail_is_taken_back_and_what_is_old_forgotten() -> None:
    clock = ManualClock(0)
    tries = throttle(clock)
    for _ in range(50):
        tries.begin("a")
        tries.undo("a")
    assert len(tries) == 0
    for _ in range(4):
        tries.begin("a")
    assert wait_s(tries)
    tries.forgive("a")
    assert not wait_s(tries)
    for _ in range(4):
        tries.begin("a")
    clock.advance(3600)
    tries.begin("a")
    assert not wait_s(tries)


@given(st.lists(st.text(max_size=3), max_size=300))
def test_a_throttle_remembers_no_more_than_its_bound_and_the_worst_longest(
    keys: list[str],
) -> None:
    tries = throttle(ManualClock(0), most_keys=10)
    for _ in range(4):
        tries.begin("worst of all")
    for key in keys:
        tries_begin(tries, key)
    assert len(tries) <= 10
    with pytest.raises(TooManyTriesError):
        tries.demand("worst of all")


def tries_begin(tries: Throttle, key: str) -> None:
    try:
        tries.begin(key)
        tries.undo(key)
        tries.begin(key)
    except TooManyTriesError:
        pass


def test_one_caller_is_an_address_or_a_network_of_ipv6() -> None:
    assert network("192.0.2.7") == "192.0.2.7"
    assert network("2001:db8:1:2:3::4") == network("2001:db8:1:2:ffff::1") == "2001:db8:1:2::/64"
    assert network(None) == network("unix") == ""


@given(st.integers(-3, 3), st.integers(0, 29))
def test_a_code_is_taken_one_step_off_and_no_further(off: int, within: int) -> None:
    step = 60_000_000
    now = datetime.fromtimestamp(step * totp.STEP_S + within, UTC)
    found = totp.step_of(SECRET, code_at(SECRET, step + off), last_step=0, now=now)
    assert found == (step + off if abs(off) <= 1 else None)


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 2)), max_size=40))
def test_a_step_is_used_once_and_never_an_older_one(tries: list[tuple[int, int]]) -> None:
    step, last, used = 60_000_000, 0, []
    for off, later in tries:
        step += later
        now = datetime.fromtimestamp(step * totp.STEP_S, UTC)
        found = totp.step_of(SECRET, code_at(SECRET, step + off), last_step=last, now=now)
        if found is not None:
            assert found > last
            last = found
            used.append(found)
    assert used == sorted(set(used))


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "１２３４５６", "1e5000"])
def test_what_is_no_code_is_wrong(code: str) -> None:
    assert totp.step_of(SECRET, code, last_step=0, now=NOW) is None


def test_the_standards_example_holds() -> None:
    now = datetime.fromtimestamp(1111111109, UTC)
    secret = b"12345678901234567890"
    assert totp.step_of(secret, "081 804", last_step=0, now=now) == 37037036
    assert "issuer=Vestibule" in totp.provisioning_uri(secret, "a@b.example")


@given(st.binary(max_size=60), st.binary(max_size=10))
def test_what_is_sealed_opens_for_its_purpose_and_owner_alone(data: bytes, bound: bytes) -> None:
    sealed = SEAL.seal("a", data, bound=bound)
    assert SEAL.unseal("a", sealed, bound=bound) == data
    assert SEAL.unseal("b", sealed, bound=bound) is None
    assert SEAL.unseal("a", sealed, bound=bound + b"x") is None
    assert SEAL.unseal("a", sealed[:-1], bound=bound) is None
    assert Seal(Secret("t" * 32)).unseal("a", sealed, bound=bound) is None
    assert SEAL.unseal("a", data) is None


def test_a_short_secret_serves_nobody() -> None:
    with pytest.raises(SettingsError, match="SESSION_SECRET"):
        Seal(Secret("short"))


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("elva tecken", "password_short"),
        ("x" * 257, "password_long"),
        ("Password1234", "password_known"),
        ("aaaaaaaaabab", "password_known"),
        ("Ada.Byron@Example.com", "password_known"),
    ],
)
def test_a_password_that_is_tried_first_is_not_taken(password: str, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        demand_good(password, email="ada.byron@example.com")
    assert refused.value.code == code


def test_any_long_password_is_taken() -> None:
    for password in (
        "häst batteri häftklammer",
        "正確的馬電池訂書針正確的馬電",
        "            a b c d",
    ):
        demand_good(password)


async def test_a_password_matches_however_the_keyboard_wrote_it() -> None:
    passwords = Passwords(CHEAP)
    stored = await passwords.hash("Ångström är rätt")
    assert (await passwords.matches(stored, "A\u030angstro\u0308m a\u0308r ra\u0308tt")).right
    assert not (await passwords.matches(stored, "Ångström är fel")).right
    assert not (await passwords.matches(None, "of nobody")).right
    assert not (await passwords.matches("garbage", "of nobody")).right
    passwords.close()


async def test_a_hash_of_older_parameters_is_made_anew() -> None:
    old, new = Passwords(CHEAP), Passwords(PasswordHasher(2, 64, 1))
    stored = await old.hash("häst batteri")
    match = await new.matches(stored, "häst batteri")
    assert match.right
    assert match.rehashed is not None
    assert (await new.matches(match.rehashed, "häst batteri")).rehashed is None
    assert (await new.matches(stored, "wrong")).rehashed is None
    old.close()
    new.close()


async def test_a_flood_of_hashes_is_bounded_and_leaves_the_loop_free() -> None:
    passwords = Passwords(HASHER)
    stored = await passwords.hash("häst batteri")
    flood = [asyncio.create_task(passwords.matches(stored, "wrong")) for _ in range(200)]
    turns = 0
    while not all(task.done() for task in flood):
        await asyncio.sleep(0)
        turns += 1
    refused = [task for task in flood if isinstance(task.exception(), UnavailableError)]
    assert len(refused) == 200 - AT_ONCE - MOST_WAITING
    assert turns > 100  # the loop went round all the while
    passwords.close()


def test_the_organisation_looked_at_is_one_that_a_grant_reaches() -> None:
    one, two = Grant(Role.ANALYST, 1), Grant(Role.STORE_MANAGER, 2, None, 5)
    everywhere = Grant(Role.ADMINISTRATOR)
    assert looked_at([one], None) == 1
    assert looked_at([one], 2) == 1
    assert looked_at([one, two], None) is None
    assert looked_at([one, two], 2) == 2
    assert looked_at([everywhere], 7) == 7
    assert looked_at([everywhere], None) is None
    assert looked_at([], 1) is None


def test_who_manages_people_of_a_place_gives_roles_within_it_alone() -> None:
    local = [Grant(Role.ADMINISTRATOR, 1)]
    assert may_give(local, Grant(Role.ANALYST, 1, None, 4))
    assert not may_give(local, Grant(Role.ANALYST, 2))
    assert not may_give(local, Grant(Role.ADMINISTRATOR))
    assert not may_give([Grant(Role.NOC)], Grant(Role.ANALYST, 1))
    assert may_give([Grant(Role.ADMINISTRATOR)], Grant(Role.ADMINISTRATOR))


@pytest.mark.parametrize(
    "text",
    [
        *("", "a@", "@b", "a b@c", "<a@b>", "a@b@c", 'a"@b', "x" * 400, f"{'x' * 65}@b"),
        *("_@[a", "a:;_@b", "(b)..@,]a.(", "a,b@c", "a..b@c", "a@b.", "=?utf-8?q?b?=@c", "a\x01@b"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        demand_email(text)
    assert demand_email("  Ada@Example.com ") == "Ada@Example.com"
    assert demand_email("ä.b+c=d@räksmörgås.example") == "ä.b+c=d@räksmörgås.example"


@given(st.text(max_size=60), st.text(max_size=60))
def test_each_session_has_a_form_token_of_its_own(one: str, other: str) -> None:
    assert (csrf_token(one) == csrf_token(other)) == (one == other)


@pytest.mark.parametrize(
    ("url", "cookie", "secure"),
    [("https://v.example", "__Host-vestibule", True), ("", "vestibule", False)],
)
def test_the_cookie_is_the_strictest_that_the_address_allows(
    url: str, cookie: str, secure: bool
) -> None:
    none = Secret("")
    settings = Settings(none, none, none, Path(), public_url=url)
    response = web.Response()
    Sessions(None, settings).begin(response, "token")
    kept = response.cookies[cookie]
    assert (kept["path"], kept["httponly"], kept["samesite"]) == ("/", True, "Lax")
    assert bool(kept["secure"]) == secure
    assert kept["domain"] == ""


@pytest.mark.parametrize(
    ("user_agent", "words"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0 Safari/537.36", "Chrome, Linux"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Safari/604.1", "Safari, iOS"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/140.0 Safari/537.36 Edg/140.0", "Edge, Windows"),
        ("curl/8.0", ""),
    ],
)
def test_a_browser_is_named_in_words(user_agent: str, words: str) -> None:
    assert browser_words(user_agent) == words
