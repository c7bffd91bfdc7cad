"""What one device is to be and to do: its settings with why and what became of them, its commands.

Who may configure devices where this one stands edits its own layer; who may command them tells it
something. What disturbs a store, or takes much from a device, is asked for with a tick beside it.
"""

import secrets
from datetime import UTC, datetime
from typing import Any

import asyncpg
from aiohttp import web

from protocol.settings import TABLE, Setting
from server.commands import orders
from server.commands.life import KINDS, OPEN, Risk, State
from server.commands.orders import Asked, Command
from server.console import reads
from server.console.office import (
    Handlers,
    Here,
    Office,
    Problem,
    form_of,
    here,
    number_of,
    part,
    tried,
)
from server.desired import settings
from server.desired.layers import Standing
from server.firmware import freezes
from server.fleet.checks import FieldError
from server.people.roles import Permission, Place

SHOWN = 20


def add_desired(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office)
    device = base + "/devices/{device}"
    app.router.add_get(f"{device}/desired", pages.show)
    app.router.add_post(f"{device}/settings", pages.configure)
    app.router.add_post(f"{device}/commands", pages.command)
    app.router.add_post(device + "/commands/{command}/cancel", pages.cancel)
    app.router.add_get(device + "/commands/{command}/file", pages.file)


class Pages(Handlers):
    """The handlers."""

    async def show(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, Permission.READ_FLEET)
        return await self._page(request, at)

    async def configure(self, request: web.Request) -> web.Response:
        """Replace what is set for this device itself."""
        at, form, row = await self._asked(request, Permission.CONFIGURE_DEVICES)

        async def act() -> None:
            async with at.acting("configure device") as connection:
                place = await settings.place(connection, at.id, "device", row["device"])
                await settings.edit(
                    connection,
                    at.id,
                    place,
                    {key: _value(TABLE[key], text) for key, text in form.items() if key in TABLE},
                    seen=form.get("version", ""),
                    reason=form.get("reason", ""),
                    override_freeze=bool(form.get("override_freeze")),
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )

        return await self._done(request, at, await tried(act))

    async def command(self, request: web.Request) -> web.Response:
        """Tell this device to do something."""
        at, form, row = await self._asked(request, Permission.COMMAND_DEVICES)
        kind = form.get("kind", "")

        async def act() -> None:
            if kind in KINDS and KINDS[kind].risk is not Risk.HARMLESS and not form.get("sure"):
                raise FieldError("sure", "tick that this is meant")
            asked = Asked(
                kind,
                (row["device"],),
                reason=form.get("reason", ""),
                once=form.get("once", "")[:64] or None,
                override_freeze=bool(form.get("override_freeze")),
            )
            async with at.acting("command device") as connection:
                await orders.ask(
                    connection, at.id, asked, actor=at.visitor.actor, now=self._office.now()
                )

        return await self._done(request, at, await tried(act))

    async def cancel(self, request: web.Request) -> web.Response:
        """Take back what has not begun."""
        at, _, row = await self._asked(request, Permission.COMMAND_DEVICES)

        async def act() -> None:
            async with at.acting("cancel command") as connection:
                found = await self._command(connection, request, at, row)
                await orders.cancel(
                    connection,
                    at.id,
                    found.ref,
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )

        return await self._done(request, at, await tried(act))

    async def file(self, request: web.Request) -> web.Response:
        """Hand out what the device sent with a command."""
        at = await here(self._office, request, Permission.COMMAND_DEVICES)
        row = await self._device(request, at, Permission.COMMAND_DEVICES)

        async def act() -> tuple[str, bytes]:
            async with at.acting("command's file") as connection:
                found = await self._command(connection, request, at, row)
                return await orders.file_of(connection, at.id, found.ref)

        got = await tried(act)
        if isinstance(got, Problem):
            raise web.HTTPNotFound
        name, content = got
        return web.Response(
            body=content,
            content_type="application/gzip",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    # -- inside ----------------------------------------------------------------------------------

    async def _asked(
        self, request: web.Request, permission: Permission
    ) -> tuple[Here, dict[str, str], asyncpg.Record]:
        at = await here(self._office, request, permission)
        return at, await form_of(request), await self._device(request, at, permission)

    async def _device(
        self, request: web.Request, at: Here, permission: Permission
    ) -> asyncpg.Record:
        async with at.acting("console device") as connection:
            row = await reads.device(
                connection, at.id, part(request, "device"), now=self._office.now()
            )
        if row is None or not at.may(permission, _place(at, row)):
            raise web.HTTPNotFound
        return row

    async def _command(
        self, connection: asyncpg.Connection, request: web.Request, at: Here, row: asyncpg.Record
    ) -> Command:
        found = await orders.find(connection, at.id, part(request, "command"))
        if found.device != row["device"]:
            raise web.HTTPNotFound
        return found

    async def _done(self, request: web.Request, at: Here, done: Problem | None) -> web.Response:
        if done is None:
            raise web.HTTPSeeOther(f"{at.path}/devices/{part(request, 'device')}/desired")
        return await self._page(request, at, problem=done)

    async def _page(
        self, request: web.Request, at: Here, *, problem: Problem | None = None
    ) -> web.Response:
        row, now = await self._device(request, at, Permission.READ_FLEET), self._office.now()
        async with at.acting("console device's settings") as connection:
            found = await settings.configuration(connection, at.id, row["device"], now=now)
            place = await settings.place(connection, at.id, "device", row["device"])
            own = await settings.find(connection, at.id, place)
            commands = await orders.listed(connection, at.id, device=row["device"], limit=SHOWN)
            frozen = await freezes.on_at(connection, at.id, [row["site_id"]], now=now)
        where = _place(at, row)
        return self._office.page(
            request,
            "desired.html",
            at=at,
            device=row,
            found=found,
            own=own,
            table=TABLE,
            commands=[(each, _results(each)) for each in commands],
            kinds=list(KINDS),
            open=OPEN,
            queued=(State.QUEUED, State.SENT),
            bad=(Standing.REFUSED, Standing.DRIFTED),
            once=secrets.token_urlsafe(12),
            may_configure=at.may(Permission.CONFIGURE_DEVICES, where),
            may_command=row["admitted"] and at.may(Permission.COMMAND_DEVICES, where),
            moment=_moment,
            frozen=frozen,
            problem=problem,
        )


def _place(at: Here, row: asyncpg.Record) -> Place:
    return at.place(row["region_id"], row["site_id"])


def _value(setting: Setting, text: str) -> Any:
    """Return a form's text as the setting's value; None where nothing is set."""
    if not text:
        return None
    if isinstance(setting.default, int):
        number = number_of(text)
        return text if number is None else number
    return "" if text == "-" else text


def _results(found: Command) -> str:
    return ", ".join(f"{name}: {value}" for name, value in found.result.items())


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
