"""An organisation with two shops and devices, reached as the desk, as ingest and as maintenance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.settings import TABLE, Value
from protocol.state import Order, Outcome, Report
from server.commands import orders
from server.commands.orders import Asked, Batch
from server.db.engine import acting, open_pool, reading, transaction
from server.desired import settings
from server.desired.settings import Configuration, Held
from tests.integration.api_world import World

CLOSED = datetime(2026, 4, 1, 4, 0, tzinfo=UTC)
OPEN = CLOSED.replace(hour=12)


@dataclass
class Fleet:
    """Devices `dc-…1` to 3 at the open-by-day `north`, 4 at the ever open `south`, 5 nowhere."""

    world: World
    desk: asyncpg.Pool
    ingest: asyncpg.Pool
    organisation: int
    now: datetime = CLOSED
    rows: dict[str, int] = field(default_factory=dict)

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)

    async def write(
        self,
        scope: str,
        of: str = "",
        *,
        whole: bool = False,
        seen: str | None = None,
        by: str = "user ada",
        reason: str = "",
        override_freeze: bool = False,
        **values: Any,
    ) -> Held:
        """Edit a layer as the desk."""
        async with acting(self.desk, "edit", organisation=self.organisation) as connection:
            place = await settings.place(connection, self.organisation, scope, of)
            return await settings.edit(
                connection,
                self.organisation,
                place,
                values,
                whole=whole,
                seen=seen,
                reason=reason,
                override_freeze=override_freeze,
                actor=by,
                now=self.now,
            )

    async def preview(self, scope: str, of: str = "", **values: Any) -> settings.Preview:
        async with reading(self.world.api, "look", organisation=self.organisation) as connection:
            place = await settings.place(connection, self.organisation, scope, of)
            return await settings.preview(
                connection, self.organisation, place, values, now=self.now
            )

    async def configuration(self, device: str) -> Configuration:
        async with reading(self.world.api, "look", organisation=self.organisation) as connection:
            return await settings.configuration(connection, self.organisation, device, now=self.now)

    async def ask(self, kind: str, *devices: str, by: str = "user ada", **named: Any) -> Batch:
        """Ask for a command as the desk."""
        async with acting(self.desk, "ask", organisation=self.organisation) as connection:
            asked = Asked(kind, devices, **named)
            return await orders.ask(connection, self.organisation, asked, actor=by, now=self.now)

    async def cancel(self, ref: str) -> orders.Command:
        async with acting(self.desk, "cancel", organisation=self.organisation) as connection:
            return await orders.cancel(
                connection, self.organisation, ref, actor="user ada", now=self.now
            )

    async def exchange(
        self, device: str, report: Report | None = None, *outcomes: Outcome
    ) -> tuple[int, dict[str, tuple[Value, int]], tuple[Order, ...], tuple[Any, Any]]:
        """Do what the listener does for a device that shows its certificate."""
        row = self.rows[device]
        async with transaction(self.ingest, "exchange") as connection:
            await connection.execute("select from devices where id = $1 for no key update", row)
            if report is not None:
                await settings.noted(connection, row, report, now=self.now)
            heard = await orders.heard(connection, row, outcomes, now=self.now)
            version, told = await settings.told(connection, row, now=self.now)
            return version, told, await orders.offer(connection, row, now=self.now), heard

    async def sweep(self) -> int:
        async with transaction(self.world.maint, "sweep") as connection:
            return await orders.sweep(connection, now=self.now)

    async def commands(self, **named: Any) -> list[orders.Command]:
        async with reading(self.world.api, "look", organisation=self.organisation) as connection:
            return await orders.listed(connection, self.organisation, **named)

    async def state(self, device: str) -> str:
        """Return where a device's last command stands."""
        return (await self.commands(device=device))[0].state.value


def report(version: int = 0, refused: Any = None, **values: Value) -> Report:
    """What a device says that has these values, and the defaults of all others."""
    has = {key: setting.default for key, setting in TABLE.items()} | values
    return Report("0.2.0", "00", version, tuple(TABLE), has, refused or {})


async def standing(owner: asyncpg.Connection, organisation: int, site: int | None, name: str,
                   *, model: str = "") -> int:  # fmt: skip
    """Add a device that stands at a spot of its own, or nowhere."""
    device: int = await owner.fetchval(
        "insert into devices (organisation_id, device, kind, model, state) "
        "values ($1, $2, 'counter', $3, 'in service') returning id",
        *(organisation, name, model),
    )
    if site is not None:
        await owner.execute(
            "with made as (insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, 'spot-' || $3, $3, 'counter') returning id) "
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "select $1, $4, id, tstzrange(null, null) from made",
            *(organisation, site, name, device),
        )
    return device


@pytest.fixture
async def fleet(stack: Stack, world: World, world_database: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as exits:
        desk, ingest = [
            await exits.enter_async_context(
                open_pool(stack.endpoints.dsn(role, world_database), size=3, name=role)
            )
            for role in ("desk", "ingest")
        ]
        organisation = await world.organisation("own")
        north = await world.site(organisation, "north", hours=(480, 1200))
        south = await world.site(organisation, "south")
        made = Fleet(world, desk, ingest, organisation)
        for number, site in enumerate((north, north, north, south, None), 1):
            name = f"dc-number-{number}"
            model = "Beam 2" if number < 3 else ""
            made.rows[name] = await standing(world.owner, organisation, site, name, model=model)
        yield made
