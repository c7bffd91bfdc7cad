"""`POST /v1/state` at the devices' listener: a device says how it is, and hears what to be and do.

The device shows its certificate, and is heard by the rules of `server.provisioning.renew` (1 to 6);
`protocol.state` says what goes to and fro. One transaction takes what it says and makes the answer,
which leaves after the commit: whatever is lost after that is asked for again.

`POST /v1/commands/{command}/file` takes what a command of this device brings, compressed, as it is.
"""

from collections.abc import Callable
from datetime import datetime

import asyncpg
import structlog
from aiohttp import web

from protocol.state import MAX_FILE, MAX_REPORT, Answer, Report, read_report, write_answer
from server.clock import Clock, at
from server.commands import orders
from server.db.engine import transaction
from server.db.turns import repeat
from server.desired import settings
from server.errors import NotFoundError
from server.firmware import carried, granting, steering
from server.firmware.waves import Payload
from server.provisioning.listener import peer_certificate
from server.provisioning.renew import hear
from server.provisioning.web import answered, body_of, refusal

SWEEP_S = 10.0

log = structlog.get_logger(__name__)


def add_state(app: web.Application, *, pool: asyncpg.Pool, now: Callable[[], datetime]) -> None:
    """Add the routes to the devices' listener; `pool` is ingest's."""

    async def state(request: web.Request) -> web.Response:
        report = read_report(await body_of(request, MAX_REPORT))
        async with transaction(pool, "exchange state") as connection:
            asking = await hear(connection, peer_certificate(request), now=now())
            answer = await answer_of(connection, asking.row, report, now=now())
        told = {"version": answer.version, "commands": len(answer.commands)}
        log.info("state told", device=asking.device, **told)
        return web.Response(text=write_answer(answer), content_type="application/json")

    async def file(request: web.Request) -> web.Response:
        content = await body_of(request, MAX_FILE)
        ref = request.match_info["command"][:64].replace("\0", "")
        try:
            async with transaction(pool, "keep command's file") as connection:
                asking = await hear(connection, peer_certificate(request), now=now())
                await orders.keep_file(connection, asking.row, ref, content, now=now())
        except NotFoundError as error:
            log.info("file refused", error=str(error))
            return refusal(request, "malformed")
        log.info("file kept", device=asking.device, command=ref, size=len(content))
        return web.json_response({"stored": len(content)})

    app.router.add_post("/v1/state", answered(state))
    app.router.add_post("/v1/commands/{command}/file", answered(file))


async def answer_of(
    connection: asyncpg.Connection, device: int, report: Report, *, now: datetime
) -> Answer:
    """Take in what a device (its row, locked) says, and return what it is told now."""
    steered = await carried.concerns(connection, device, Payload.SETTINGS)
    if steered:
        await steering.heard(connection, device, report, now=now)
    await settings.noted(connection, device, report, now=now)
    if steered:
        await granting.grant(connection, device, now=now, payload=Payload.SETTINGS)
    heard, withdrawn = await orders.heard(connection, device, report.commands, now=now)
    version, wanted = await settings.told(connection, device, now=now)
    if steered:
        await steering.told(connection, device, version, now=now)
    given = await orders.offer(connection, device, now=now)
    return Answer(version, wanted, settings.CONFIRM_S, given, heard, withdrawn)


async def sweeping(pool: asyncpg.Pool, clock: Clock) -> None:
    """Expire commands and ring again, until cancelled. Role vestibule_maint."""

    async def sweep() -> None:
        async with transaction(pool, "sweep commands") as connection:
            ended = await orders.sweep(connection, now=at(clock.now_ms()))
        if ended:
            log.info("commands expired", count=ended)

    await repeat(sweep, rest_s=SWEEP_S, away="commands not swept")
