"""`POST /v1/enrol` as a device meets it, and the allow-list as an operator makes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from ops import register
from ops.services.stack import Stack
from protocol.label import label
from server.provisioning import manifest
from server.provisioning.claims import make_claim
from server.provisioning.refusals import TABLE
from server.provisioning.web import EnrolRequest, build_enrolment
from tests.deployed import deployed
from tests.integration.api_world import World
from tests.integration.provisioning_world import Key, Provisioning, provisioning

pytestmark = pytest.mark.services
SECRET = "23456789ABCDEFGH"
HEAD = "serial,model,kind,hardware_revision,setup_secret,site,allowed_until"
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def place(world: World, stack: Stack, world_database: str) -> AsyncIterator[Provisioning]:
    async with provisioning(stack, world_database, world.owner) as made:
        yield made


@pytest.fixture
async def client(place: Provisioning, stack: Stack) -> AsyncIterator[Client]:
    app = build_enrolment(
        pool=place.ingest,
        pki=stack.endpoints.pki,
        broker=("broker.example", 8883),
        now=lambda: place.now,
        monotonic=place.clock.monotonic,
        releases=lambda: b'{"signed": {}}',
    )
    async with TestClient(TestServer(app)) as made:
        yield made


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection shows a certificate: of who shows none, nothing is read."""
    monkeypatch.setattr("server.provisioning.web.peer_certificate", lambda request: b"shown")


async def ask(client: Client, language: str = "", **body: str) -> tuple[int, dict[str, Any]]:
    async with client.post(
        "/v1/enrol", json=body, headers={"Accept-Language": language}
    ) as response:
        answer: dict[str, Any] = await response.json(content_type=None)
        if "retry_after" in answer:
            assert response.headers["Retry-After"] == str(answer["retry_after"])
        return response.status, answer


async def test_a_label_is_answered_with_all_that_a_device_needs(
    place: Provisioning, client: Client
) -> None:
    shown = await place.device()
    status, answer = await ask(client, serial="dc-0001", secret=shown.secret, csr=Key().csr)
    assert status == 200
    assert set(answer) >= {"device", "kind", "chain", "bundle", "broker_host", "broker_port"}
    assert answer["releases"] == '{"signed": {}}'


async def test_who_waits_is_told_how_long_in_its_language(
    place: Provisioning, client: Client
) -> None:
    await place.policy("technician")
    shown = await place.device()
    for language, wanted in (("sv", "sv"), ("da-DK,da", "da"), ("fr", "en")):
        status, answer = await ask(
            client, language, serial=shown.serial, secret=shown.secret, csr=Key().csr
        )
        assert status == 202
        assert (answer["code"], answer["then"], answer["retry_after"]) == ("pending", "wait", 15)
        assert answer["detail"] == getattr(TABLE["pending"], wanted)


async def test_guessing_ends_in_too_many_and_a_time_to_wait(
    place: Provisioning, client: Client
) -> None:
    shown = await place.device()
    answers = [
        await ask(client, serial=shown.serial, secret="2" * 16, csr=Key().csr) for _ in range(7)
    ]
    codes = [(status, answer["code"]) for status, answer in answers]
    assert codes == [(403, "bad_secret")] * 6 + [(429, "too_many")]
    assert answers[-1][1]["retry_after"] >= 1
    place.later(hours=2)
    status, _ = await ask(client, serial=shown.serial, secret=shown.secret, csr=Key().csr)
    assert status == 200


async def test_claims_that_nobody_made_are_limited_by_address(client: Client) -> None:
    codes = set()
    for _ in range(60):
        status, answer = await ask(client, claim="guess", csr=Key().csr)
        codes.add((status, answer["code"]))
    assert codes == {(403, "unknown_claim"), (429, "too_many")}


async def test_nobodys_right_secret_waits_for_what_a_neighbour_does(
    place: Provisioning, client: Client
) -> None:
    shown, other = await place.device("DC-0001"), await place.device("DC-0002")
    row = await place.owner.fetchval("select id from devices where serial = $1", other.serial)
    claim = await make_claim(place.owner, row, now=place.now)
    wrong, csr = "2" * 16, Key().csr
    for number in range(60):
        status, answer = await ask(client, serial=f"DC-9{number:03}", secret=wrong, csr=csr)
        assert (status, answer["code"]) == (403, "unknown_serial")
    for number in range(20):  # of a network's allowance, which serials nobody knows have not used
        status, answer = await ask(client, claim=f"guess {number}", csr=csr)
        assert (status, answer["code"]) == (403, "unknown_claim")
    answers = [(await ask(client, claim="guess", csr=csr))[1]["code"] for _ in range(40)]
    assert answers[-1] == "too_many"
    status, answer = await ask(client, serial=shown.serial, secret=wrong, csr=csr)
    assert (status, answer["code"]) == (429, "too_many")
    status, _ = await ask(client, serial=shown.serial, secret=shown.secret, csr=csr)
    assert status == 200
    status, _ = await ask(client, claim=claim, csr=Key().csr)
    assert status == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"csr": "x"},
        {"csr": "x", "claim": "a", "serial": "b", "secret": "c"},
        {"csr": "x", "serial": "b"},
        {"csr": "x", "claim": "a", "wish": "b"},
    ],
)
async def test_what_is_no_request_is_malformed(client: Client, body: dict[str, str]) -> None:
    assert (await ask(client, **body))[1]["code"] == "malformed"


@pytest.mark.parametrize("path", ["/v1/enrol", "/v1/renew", "/v1/renew/confirm"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.usefixtures("known")
async def test_what_is_too_large_is_refused_in_the_same_form(
    client: Client, path: str, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield bytes(1024)

    body = pieces() if chunked else bytes(17 * 1024)
    async with client.post(path, data=body, headers={"Accept-Language": "sv"}) as response:
        assert response.status == 413
        assert response.content_type == "application/problem+json"
        answer = await response.json(content_type=None)
    row = TABLE["too_large"]
    assert (answer["code"], answer["status"]) == ("too_large", 413)
    assert (answer["detail"], answer["then"]) == (row.sv, "give up")


async def test_a_database_that_is_away_is_no_refusal(place: Provisioning, client: Client) -> None:
    shown = await place.device()
    await place.ingest.close()
    status, answer = await ask(client, serial=shown.serial, secret=shown.secret, csr=Key().csr)
    assert (status, answer["code"], answer["then"]) == (503, "unavailable", "wait")


async def test_a_claim_made_by_an_operator_replaces_the_key(
    place: Provisioning, client: Client
) -> None:
    shown = await place.device()
    await ask(client, serial=shown.serial, secret=shown.secret, csr=Key().csr)
    row = await place.owner.fetchval("select id from devices")
    place.later(minutes=1)
    secret = await make_claim(place.owner, row, now=place.now)
    status, _ = await ask(client, claim=secret, csr=Key().csr)
    assert status == 200
    assert await place.certificates(shown.serial) == ["revoked", "active"]
    events = await place.owner.fetch("select event from issuance_log order by number")
    assert [e["event"] for e in events].count("revoked") == 1


def test_a_request_does_not_show_its_secrets() -> None:
    request = EnrolRequest(csr="", serial="DC-1", secret=SECRET, voucher=SECRET)
    assert SECRET not in repr(request)


async def imported(place: Provisioning, *lines: str) -> tuple[list[str], list[str]]:
    rows, bad = manifest.read("\n".join((HEAD, *lines)).encode())
    async with place.owner.transaction():
        planned, contradicting = await manifest.plan(place.owner, place.organisation, rows)
        await manifest.carry_out(
            place.owner, place.organisation, planned, actor="command", now=place.now
        )
    return [one.deed.value for one in planned], [row.why for row in (*bad, *contradicting)]


async def test_an_imported_device_can_be_set_up_and_no_secret_is_kept(
    place: Provisioning, client: Client
) -> None:
    line = f"DC-0007,C2,counter,r1,{SECRET},site-1,2026-12-31"
    assert await imported(place, line) == (["add"], [])
    assert await imported(place, line) == (["nothing"], [])
    assert await imported(place, line.replace("r1", "r2")) == (["change"], [])
    assert await place.state("DC-0007") == "manufactured"
    text = str(await place.owner.fetch("select * from devices"))
    text += str(await place.owner.fetch("select * from audit"))
    assert SECRET not in text
    assert await place.acts() == ["manifest imported", "manifest imported"]
    status, _ = await ask(client, serial="DC-0007", secret=SECRET, csr=Key().csr)
    assert status == 200


async def test_rows_that_contradict_what_is_there_are_refused(place: Provisioning) -> None:
    shown = await place.device("DC-0001")
    await place.ask(shown, Key())
    await place.device("DC-0002", state="retired")
    other = await place.owner.fetchval(
        "insert into organisations (ref, name) values ('o', 'o') returning id"
    )
    await place.device("DC-0003")
    await place.owner.execute(
        "update devices set organisation_id = $1 where serial = 'DC-0003'", other
    )
    deeds, why = await imported(
        place,
        f"DC-0001,m,counter,r,{SECRET},,",
        "DC-0001X,m,kiosk,r,3456789ABCDEFGHJ,site-9,",
        "DC-0002,m,counter,r,456789ABCDEFGHJK,,",
        "DC-0003,m,counter,r,56789ABCDEFGHJKL,,",
    )
    assert deeds == []
    assert [text.split(" ", 1)[1] for text in why] == [
        "is enrolled, with another set-up secret",
        "organisation has no site 'site-9'",
        "is retired for good",
        "belongs to another organisation",
    ]


async def test_a_returned_device_is_manufactured_again(place: Provisioning, client: Client) -> None:
    old = await place.device("DC-0001")
    await place.claim(old.text, "door-1")
    await place.ask(old, Key())
    place.later(days=1)
    new = await place.device("DC-0002")
    await place.claim(new.text, "door-1", replaces=old.text)
    await place.ask(new, Key())
    assert await place.state("DC-0001") == "returned"
    assert await imported(place, f"DC-0001,m,counter,r,{SECRET},,") == (["manufacture again"], [])
    status, _ = await ask(client, serial="DC-0001", secret=SECRET, csr=Key().csr)
    assert status == 200
    assert await place.certificates("DC-0001") == ["revoked", "active"]


async def test_the_command_writes_nothing_if_a_row_is_wrong_unless_told_to_skip(
    place: Provisioning,
    stack: Stack,
    world_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deployed(monkeypatch, stack, world_database, pki=stack.endpoints.pki)
    file = tmp_path / "manifest.csv"
    file.write_text(f"{HEAD}\nDC-0001,m,counter,r,{SECRET},,\nDC-0002,m,camera,r,{SECRET},,\n")
    words = ["device", "import", str(file), "--organisation", "own"]

    async def run(*more: str) -> int:
        return await asyncio.to_thread(register.main, [*words, *more])

    async def count() -> int:
        found: int = await place.owner.fetchval("select count(*) from devices")
        return found

    assert await run() == 1
    assert f"{file}:3: kind is" in capsys.readouterr().err
    assert await run("--dry-run", "--skip-bad") == 0
    assert "DC-0001\tcounter\tadd" in capsys.readouterr().out
    assert await count() == 0
    assert await run("--skip-bad") == 0
    assert await count() == 1
    words[1:] = ["label", "dc-0001", "--secret", SECRET]
    capsys.readouterr()
    assert await run() == 0
    shown = capsys.readouterr().out
    assert label("DC-0001", SECRET).text in shown
    assert "█" in shown or "▄" in shown
