"""The same for many devices: whatever a search finds, looked at before it is done.

What is looked at is named by the digest of the devices found; should the search find others by the
time it is done, nothing is done, and the page shows what it finds now.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from aiohttp import web

from server.commands import life, orders
from server.commands.orders import Asked, Reached
from server.console.office import (
    Handlers,
    Here,
    Office,
    Problem,
    asked,
    form_of,
    here,
    number_of,
    tried,
)
from server.console.searching import selected, wished
from server.errors import NotFoundError, RefusedError
from server.firmware.nights import instant
from server.fleet import search
from server.fleet.filters import MOST_CHARACTERS, FilterError
from server.health import windows
from server.people.roles import Permission

KINDS = ("identify", "reboot", "self-test", "silence")
HOURS = (1, 4, 12, 24)
MOST_SILENCED = 200
"""A window a device; more is a site's, a region's or the organisation's."""


@dataclass(frozen=True, slots=True)
class Look:
    """What would be done to whom."""

    names: tuple[str, ...]
    reached: Reached
    sites: Mapping[str, str]
    """Their names by their references."""

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]


def add_bulk(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office)
    app.router.add_get(f"{base}/bulk", pages.show)
    app.router.add_post(f"{base}/bulk", pages.act)


class Pages(Handlers):
    """The handlers."""

    async def show(self, request: web.Request) -> web.Response:
        """Show whom it would reach."""
        at = await here(self._office, request, Permission.ADMIT)
        words = asked(request, "q", most=MOST_CHARACTERS)
        return await self._page(request, at, words, asked(request, "segment"), asked(request, "do"))

    async def act(self, request: web.Request) -> web.Response:
        """Do it, if the search still finds what was shown."""
        at = await here(self._office, request, Permission.ADMIT)
        form = await form_of(request)
        words, segment, do = form.get("q", ""), form.get("segment", ""), form.get("do", "")
        if do not in KINDS:
            raise web.HTTPNotFound

        async def act() -> str:
            async with at.acting(f"console bulk {do}") as connection:
                look = await self._look(connection, at, words, segment, do)
                if look.digest != form.get("shown", ""):
                    raise RefusedError("changed", "the search finds other devices by now")
                if do == "silence":
                    return await self._silence(connection, at, look, form)
                batch = await orders.ask(
                    connection,
                    at.id,
                    Asked(
                        do,
                        look.names,
                        reason=form.get("reason", "")[:300],
                        override_freeze=bool(form.get("override_freeze")),
                    ),
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )
                return batch.ref

        done = await tried(act)
        if isinstance(done, Problem):
            return await self._page(request, at, words, segment, do, problem=done, form=form)
        raise web.HTTPSeeOther(f"{at.path}/devices?done={done}")

    async def _silence(
        self, connection: asyncpg.Connection, at: Here, look: Look, form: dict[str, str]
    ) -> str:
        if len(look.names) > MOST_SILENCED:
            raise RefusedError(
                "too_many_devices",
                f"{len(look.names)} devices; at most {MOST_SILENCED}: silence their sites instead",
            )
        now = self._office.now()
        ends_at = now + timedelta(hours=number_of(form.get("hours", "")) or 0)
        for name in look.names:
            wanted = windows.Wanted(
                windows.Kind.MAINTENANCE, form.get("reason", ""), None, ends_at, device=name
            )
            await windows.add(connection, at.id, wanted, actor=at.visitor.actor, now=now)
        return f"silence-{len(look.names)}"

    async def _look(
        self, connection: asyncpg.Connection, at: Here, words: str, segment: str, do: str
    ) -> Look:
        now = self._office.now()
        needed = Permission.ADMIT if do == "silence" else Permission.COMMAND_DEVICES
        chosen = await selected(connection, at, needed, wished(words), segment=segment, now=now)
        names = tuple(name for _, name in await search.found(connection, chosen))
        if not names:
            raise RefusedError("no_devices", "the search finds no device")
        kind = do if do in life.KINDS else "identify"
        reached = await orders.reached(connection, at.id, Asked(kind, names), now=now)
        sites = await connection.fetch(
            "select ref, name from sites where organisation_id = $1 and ref = any($2::text[])",
            *(at.id, list(reached.sites)),
        )
        return Look(names, reached, {row["ref"]: row["name"] for row in sites})

    async def _page(
        self,
        request: web.Request,
        at: Here,
        words: str,
        segment: str,
        do: str,
        *,
        problem: Problem | None = None,
        form: dict[str, str] | None = None,
    ) -> web.Response:
        look: Look | None = None
        try:
            async with at.acting("console bulk look") as connection:
                look = await self._look(connection, at, words, segment, do)
        except NotFoundError as error:
            raise web.HTTPNotFound from error
        except FilterError as error:
            problem = Problem("filter", "filter", str(error))
        except RefusedError:
            look = None
        return self._office.page(
            request,
            "bulk.html",
            at=at,
            wanted=words,
            segment=segment,
            do=do if do in KINDS else KINDS[0],
            kinds=KINDS,
            hours=HOURS,
            look=look,
            moment=instant,
            form=form or {},
            problem=problem,
        )
