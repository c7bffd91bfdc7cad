"""What somebody does who took a service over: its certificate, its role, or a dump of it all."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from ops.services.stack import Stack
from protocol.topics import Leg, topic
from server.api.keys import create_api_key
from server.audit import anchor
from server.audit.log import record, verify
from server.clock import at
from server.config import Secret
from server.people.links import Purpose
from server.people.sealing import Seal
from server.people.totp import begin as begin_codes
from server.people.totp import new_secret
from server.provisioning.claims import make_claim
from tests.authenticator import STEP_S, code_at
from tests.integration.api_world import World
from tests.integration.people_world import GOOD
from tests.integration.tech_world import Shop
from tests.integration.tech_world import shop as shop
from tests.integration.test_broker_mtls import A, Fleet, until
from tests.integration.test_people_signin import cookie

pytestmark = pytest.mark.services


async def columns(owner: asyncpg.Connection) -> list[tuple[str, str]]:
    """Return every table and column of ours that can hold a secret."""
    rows = await owner.fetch(
        "select c.table_name, c.column_name from information_schema.columns c "
        "join information_schema.tables t using (table_schema, table_name) "
        "where c.table_schema = 'public' and t.table_type = 'BASE TABLE' "
        "and c.data_type not in ('integer', 'bigint', 'smallint', 'boolean')"
    )
    return [(row[0], row[1]) for row in rows]


def forms(secret: str | bytes) -> set[str]:
    """Return how a secret would look in a dump: as it is, in hexadecimal, in base64."""
    data = secret if isinstance(secret, bytes) else secret.encode()
    found = {data.hex(), base64.b64encode(data).decode().rstrip("=")}
    found |= {base64.urlsafe_b64encode(data).decode().rstrip("="), base64.b32encode(data).decode()}
    return found | ({secret} if isinstance(secret, str) else set())


async def test_x51_a_dump_holds_no_secret_that_can_be_used(shop: Shop) -> None:
    people = shop.people
    owner, own = people.owner, people.organisations["own"]
    label = await shop.device()
    voucher = await shop.voucher()
    key = await create_api_key(owner, own, "test")
    link = await people.link(shop.user, Purpose.SIGN_IN)
    codes, seal = new_secret(), Seal(Secret("s" * 32))
    code = code_at(codes, int(people.now.timestamp()) // STEP_S)
    assert await begin_codes(owner, seal, shop.user, codes, code, now=people.now)
    row = await owner.fetchval("select id from devices")
    claim = await make_claim(owner, row, now=people.now)
    secrets = {
        "password": GOOD,
        "session": cookie(shop.phone),
        "link": link,
        "API key": key.split("_", 2)[2],
        "label": label.secret,
        "codes": codes,
        "claim": claim,
        "voucher": voucher["text"].split(".")[2],
        "session secret": "s" * 32,
    }
    assert all(len(secret) > 7 for secret in secrets.values())
    seen = 0
    for table, column in await columns(owner):
        values = await owner.fetch(
            f'select "{column}"::text as v from "{table}" where "{column}" is not null'
        )
        text = "\n".join(value["v"] for value in values)
        seen += len(values)
        assert "PRIVATE KEY" not in text, (table, column)
        for name, secret in secrets.items():
            assert not [f for f in forms(secret) if f in text], (name, table, column)
    assert seen > 50


async def test_x52_a_chain_rewritten_whole_is_known_by_the_head_in_the_log(world: World) -> None:
    """Whoever owns the database can make every hash right again: the log has left it by then."""
    own = await world.organisation("own")
    now = at(world.clock.now_ms())

    async def write(*subjects: str) -> None:
        async with world.owner.transaction():
            for subject in subjects:
                await record(
                    world.owner,
                    actor="user ada",
                    act="key revoked",
                    subject=subject,
                    organisation=own,
                    now=now,
                )

    await write("one", "two", "three")
    noted = await logged(world)
    assert set(noted) == {own}
    assert (await verify(world.owner, heads=noted))[1] == []
    await world.owner.execute("delete from audit where chain = $1", own)
    await world.organisation("again")
    await write("one", "nothing", "three", "four", "five")
    assert (await verify(world.owner))[1] == [], "in the database all is well"
    (broken,) = (await verify(world.owner, heads=noted))[1]
    assert (broken.chain, broken.number) == (own, noted[own][0])


async def logged(world: World) -> dict[int, tuple[int, bytes]]:
    """Return the heads that the server tells in its log, which is kept elsewhere."""
    with capture_logs() as logs:
        task = asyncio.create_task(anchor.run(world.maint))
        async with asyncio.timeout(10):
            while not logs:  # noqa: ASYNC110 - the log is another task's work
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    heads = [each for each in logs if each["event"] == "audit head"]
    return {each["chain"]: (each["number"], bytes.fromhex(each["hash"])) for each in heads}


async def test_x52_no_role_of_ours_changes_or_deletes_what_was_audited(
    stack: Stack, world: World, world_database: str
) -> None:
    await world.organisation("own")
    for role in ("api", "desk", "ingest", "maint"):
        connection = await asyncpg.connect(stack.endpoints.dsn(role, world_database))
        try:
            for change in ("update audit set actor = 'x'", "delete from audit", "truncate audit"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(change)
        finally:
            await connection.close()


async def test_x30_ingests_certificate_sends_nobody_a_command_and_orders_nobody_out(
    stack: Stack, tmp_path: Path
) -> None:
    fleet = Fleet(stack, tmp_path)
    wishes = ("v1/+/+/down", "$CONTROL/#", "$SYS/#", "#", topic(A, Leg.RECEIPT))
    order = json.dumps({"commands": [{"command": "disableClient", "username": A}]})
    async with (
        fleet.service("svc-ingest") as ingest,
        fleet.service("svc-downlink") as downlink,
        fleet.device(A) as device,
    ):
        await device.subscribe([(topic(A, Leg.DOWN), 1), (topic(A, Leg.RECEIPT), 1)])
        await ingest.subscribe([("v1/+/+/up", 1), *((wish, 1) for wish in wishes)])
        await ingest.publish(topic(A, Leg.DOWN), b"forged", qos=1)
        await ingest.publish(topic(A, Leg.UP), b"forged", qos=1)
        await ingest.publish("$CONTROL/dynamic-security/v1", order, qos=1)
        await downlink.publish(topic(A, Leg.DOWN), b"secret", qos=1)
        await ingest.publish(topic(A, Leg.RECEIPT), b"receipt", qos=1)
        heard = await until(device, b"receipt")
        assert heard == [(topic(A, Leg.DOWN), b"secret"), (topic(A, Leg.RECEIPT), b"receipt")]
        await device.publish(topic(A, Leg.UP), b"still here", qos=1)
        assert await until(ingest, b"still here") == [(topic(A, Leg.UP), b"still here")]
