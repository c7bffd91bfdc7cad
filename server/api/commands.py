"""The routes of /v1 about commands: what devices are told to do, once, and what came of it."""

import base64
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.parameters import Listing, Nothing, read_cursor, write_cursor
from server.api.reads import Call, Route
from server.api.types import Page
from server.commands import orders
from server.commands.life import KINDS, State
from server.commands.orders import Asked, Batch, Command

WRITE = "commands:write"
_LAST = (1 << 63) - 1


class NewCommand(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be done, by the `devices` named, else by all of `site`, else by all there are.

    `kind` is reboot, identify, self-test, diagnostics or log-tail. A reboot where the store is open
    needs a `reason`; without one it waits until the store is closed. Who has not fetched it within
    `ttl_s` is not asked any more. `lines` is how much of a log is wanted. While a freeze is on, a
    reboot there is refused (`frozen`), unless `override_freeze` is true and the `reason` says why.
    """

    kind: str
    devices: list[str] = []
    site: str | None = None
    reason: str = ""
    ttl_s: Annotated[int, msgspec.Meta(ge=60, le=604_800)] | None = None
    lines: int = 100
    override_freeze: bool = False


class CommandPreview(msgspec.Struct, frozen=True):
    """Whom a command would reach, by site; `open_now` are the sites that it would disturb, `frozen`
    the freezes that it would fall into."""

    devices: int
    sites: dict[str, int]
    open_now: list[str]
    left_out: int
    risk: str
    frozen: list[str]


class BatchRecord(msgspec.Struct, frozen=True):
    """Commands that were asked for together, and how many stand where."""

    batch: str
    kind: str
    reason: str
    asked_by: str
    asked_at: datetime
    expires_at: datetime
    states: dict[str, int]


class CommandRow(msgspec.Struct, frozen=True):
    """What one device is to do: queued, sent, running, done, failed, expired or cancelled."""

    command: str
    batch: str
    device: str
    kind: str
    state: str
    reason: str
    asked_by: str
    asked_at: datetime
    expires_at: datetime
    sent_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    code: str
    result: dict[str, int | str]
    ended_by: str
    has_file: bool


class FileRecord(msgspec.Struct, frozen=True):
    """What a device sent beside its answer: gzip, in base64; kept 30 days."""

    command: str
    name: str
    content: str


class CommandListing(Listing, frozen=True, forbid_unknown_fields=True):
    """A page of commands, the latest first."""

    device: Annotated[str | None, msgspec.Meta(description="Of this device alone.")] = None
    batch: Annotated[str | None, msgspec.Meta(description="Of this batch alone.")] = None
    state: Annotated[State | None, msgspec.Meta(description="In this state alone.")] = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 100


def row_of(found: Command) -> CommandRow:
    """Return a command as it is answered."""
    return CommandRow(
        found.ref,
        found.batch,
        found.device,
        found.kind,
        found.state.value,
        found.reason,
        found.asked_by,
        found.asked_at,
        found.expires_at,
        found.sent_at,
        found.started_at,
        found.ended_at,
        found.code,
        dict(found.result),
        found.ended_by,
        found.has_file,
    )


def _batch(found: Batch) -> BatchRecord:
    return BatchRecord(
        found.ref,
        found.kind,
        found.reason,
        found.asked_by,
        found.asked_at,
        found.expires_at,
        dict(found.states),
    )


def _asked(body: NewCommand) -> Asked:
    ttl = None if body.ttl_s is None else timedelta(seconds=body.ttl_s)
    return Asked(
        *(body.kind, tuple(body.devices), body.site, body.reason, ttl, body.lines),
        override_freeze=body.override_freeze,
    )


async def _list(call: Call, asked: CommandListing) -> Page[CommandRow]:
    found = await orders.listed(
        call.connection,
        await call.organisation(),
        device=asked.device,
        batch=asked.batch,
        state=asked.state,
        before=_LAST if asked.cursor is None else int(read_cursor(asked)[1]),
        limit=asked.limit + 1,
    )
    shown = found[: asked.limit]
    more = len(found) > len(shown)
    return Page(
        [row_of(each) for each in shown],
        write_cursor(asked, ("", shown[-1].id)) if more else None,
    )


async def _one(call: Call, asked: Nothing) -> CommandRow:
    del asked
    return row_of(await orders.find(call.connection, await call.organisation(), call.path["ref"]))


async def _file(call: Call, asked: Nothing) -> FileRecord:
    del asked
    ref = call.path["ref"]
    name, content = await orders.file_of(call.connection, await call.organisation(), ref)
    return FileRecord(ref, name, base64.b64encode(content).decode())


async def _one_batch(call: Call, asked: Nothing) -> BatchRecord:
    del asked
    return _batch(await orders.batch(call.connection, await call.organisation(), call.path["ref"]))


async def _preview(call: Call, asked: NewCommand) -> CommandPreview:
    found = await orders.reached(
        call.connection, await call.organisation(), _asked(asked), now=call.now
    )
    kind = KINDS.get(asked.kind)
    return CommandPreview(
        len(found.devices),
        dict(found.sites),
        list(found.open_now),
        found.left_out,
        "" if kind is None else kind.risk.value,
        [each.ref for each in found.frozen],
    )


async def _ask(act: Act, body: NewCommand) -> BatchRecord:
    return _batch(await orders.ask(act.connection, act.organisation, _asked(body), **act.by))


async def _cancel(act: Act) -> CommandRow:
    return row_of(await orders.cancel(act.connection, act.organisation, act.ref, **act.by))


ROUTES = (
    Route(
        "/commands",
        "What devices were told to do",
        CommandListing,
        Page[CommandRow],
        CommandRow,
        _list,
    ),
    Route("/commands/{ref}", "One command", Nothing, CommandRow, None, _one),
    Route("/commands/{ref}/file", "What a device sent with it", Nothing, FileRecord, None, _file),
    Route("/batches/{ref}", "Commands asked for together", Nothing, BatchRecord, None, _one_batch),
    Route(
        "/commands:preview",
        "Whom a command would reach",
        Nothing,
        CommandPreview,
        None,
        _preview,
        method="POST",
        body=NewCommand,
    ),
)
ACTS = written(
    WRITE,
    ActRoute("POST", "/commands", "Tell devices to do something", BatchRecord, _ask, NewCommand),
    ActRoute("DELETE", "/commands/{ref}", "Take back what has not begun", CommandRow, _cancel),
)
