"""A live server whose organisation has one of everything, under the names of the API's examples."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ops.services.stack import Stack
from server.api import reads
from server.api.examples import name_of
from server.api.keys import SCOPES, create_api_key
from server.api.openapi import describe
from server.api.routes import ACTS, READS, build_api
from server.config import Secret
from server.db.engine import open_pool
from server.people.sealing import Seal
from tests.integration.api_world import ALL_SLOTS, utc
from tests.integration.isolation_world import KINDS, fill
from tests.integration.people_world import People

NAMES = {kind: name_of(kind) for kind in (*KINDS, "device")}


@dataclass(frozen=True, slots=True)
class Contract:
    """The API on a socket, its description, and a key that may do everything."""

    url: str
    key: str
    document: dict[str, Any]

    @property
    def operations(self) -> list[str]:
        """Every operation, as `GET /sites`."""
        return [
            f"{method.upper()} {path}"
            for path, methods in self.document["paths"].items()
            for method in methods
        ]


@pytest.fixture
async def contract(
    stack: Stack, world_database: str, people: People, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Contract]:
    """The API over an organisation that `fill` fills, with five days of counts; nobody waits."""
    monkeypatch.setattr(reads, "POLL_S", 0)
    owner, own = people.owner, people.organisations["own"]
    await owner.execute("delete from sites")
    await fill(people, NAMES, own, "Flagship")
    spot = await owner.fetchval("select id from spots where ref = $1", NAMES["spot"])
    await owner.executemany(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, resolution_s) "
        "values ($1, $2, $3, 7, 6, 60)",
        [
            (utc("2026-03-01T00:00") + timedelta(minutes=15 * quarter), ALL_SLOTS, spot)
            for quarter in range(5 * 96)
        ],
    )
    key = await create_api_key(owner, own, "contract", scopes=sorted(SCOPES))
    async with AsyncExitStack() as exits:
        dsn = stack.endpoints.dsn("api", world_database)
        api = await exits.enter_async_context(open_pool(dsn, size=4, name="api"))
        app = web.Application()
        seal = Seal(Secret("s" * 32))
        made = build_api(pool=api, desk=people.desk, clock=people.clock, seal=seal, burst=1_000_000)
        app.add_subapp("/v1/", made)
        server = await exits.enter_async_context(TestServer(app))
        document = msgspec.to_builtins(describe((*READS, *ACTS)))
        yield Contract(str(server.make_url("/v1")), key, document)
