"""Devices and what they stand on, for commands: found by its name, or made as the console makes it.

Everything goes through the checked functions of `server.fleet` and is audited by them, as acts of
the command; the audit's rows are written last, before the caller's transaction ends.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg

from protocol.identity import DeviceId
from server.fleet import checks, doors, organisations, register, sites, spots
from server.fleet.checks import Known
from server.fleet.doors import Door
from server.fleet.organisations import Organisation
from server.fleet.register import By, Later
from server.fleet.sites import Site
from server.fleet.spots import Spot
from server.ingest.reassign import reassign

ACTOR = "command"
"""How the audit names the operator at the command line."""


class Places:
    """Finds and makes, within one transaction of the owner; see `places`."""

    def __init__(self, connection: asyncpg.Connection, *, now: datetime) -> None:
        self._connection, self._now = connection, now
        self.later = Later()
        self.by = By(actor=ACTOR, now=now, noted=self.later)

    async def organisation(self, name: str) -> Known[Organisation]:
        """Return the organisation of this name, made if it is new."""
        name = checks.name(name, "organisation")
        found = await organisations.find_named(self._connection, name)
        return found or await organisations.add(self._connection, Organisation(name), **self.by)

    async def site(self, organisation: int, wanted: Site) -> Known[Site]:
        """Return the site of this name as it is, made as it is wanted if it is new."""
        ref = await self._connection.fetchval(
            "select ref from sites where organisation_id = $1 and name = $2 order by id limit 1",
            *(organisation, checks.name(wanted.name)),
        )
        if ref is not None:
            return await sites.find(self._connection, organisation, ref)
        return await sites.add(self._connection, organisation, wanted, **self.by)

    async def spot(
        self, organisation: int, site: Known[Site], *, name: str, kind: str
    ) -> Known[Spot]:
        """Return the site's spot of this name, made if it is new: a counter's at its own door."""
        name = checks.name(name)
        for known in await spots.of_site(self._connection, site.id, now=self._now):
            if known.facts.name == name:
                return known
        door = await self._door(organisation, site, name) if kind == "counter" else None
        wanted = Spot(name, kind, door)
        return await spots.add(self._connection, organisation, site.ref, wanted, **self.by)

    async def _door(self, organisation: int, site: Known[Site], name: str) -> str:
        for known in await doors.of_site(self._connection, site.id):
            if known.facts.name == name:
                return known.ref
        made = await doors.add(self._connection, organisation, site.ref, Door(name), **self.by)
        return made.ref

    async def device(
        self, organisation: int, *, kind: str, serial: str = "", model: str = "", device: str = ""
    ) -> tuple[int, DeviceId]:
        """Add a device that may be claimed; return its row and its id."""
        return await register.add_device(
            self._connection,
            organisation,
            kind=kind,
            serial=serial,
            model=model,
            device=device,
            **self.by,
        )

    async def standing(self, spot: str) -> str | None:
        """Return the device that stands at a spot for now, if any does."""
        found: str | None = await self._connection.fetchval(
            "select d.device from assignments a join devices d on d.id = a.device_id "
            "join spots s on s.id = a.spot_id where s.ref = $1 and upper_inf(a.valid)",
            spot,
        )
        return found

    async def stand(self, device: str, spot: str, *, since: datetime) -> int:
        """Let a device stand at a spot from `since` on; return how many stored rows moved."""
        moved = await reassign(self._connection, device=device, spot=spot, since=since)
        await self.later(
            self._connection,
            actor=ACTOR,
            act="device assigned",
            subject=device,
            detail={"spot": spot, "since": since.isoformat(), "rows": moved},
            organisation=await self._connection.fetchval(
                "select organisation_id from devices where device = $1", device
            ),
            now=self._now,
        )
        return moved


@asynccontextmanager
async def places(connection: asyncpg.Connection, *, now: datetime) -> AsyncIterator[Places]:
    """Find and make places and devices, and audit it all at the end, if there was no error."""
    made = Places(connection, now=now)
    yield made
    await made.later.write(connection)
