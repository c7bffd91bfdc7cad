"""Routes that read: parameters in, one read-only transaction of the organisation, an answer out.

A question too long for an address is a body: such a route is a POST that changes nothing, may be
sent again at will, and has pages and an ETag as others do. Its `cursor` goes into the body, too.
"""

from asyncio import Semaphore, sleep, to_thread
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from weakref import WeakValueDictionary

import asyncpg
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from server.api.answers import respond, wanted_format
from server.api.bodies import body_of, parsed
from server.api.keys import RateLimit, SignIn, admitted
from server.api.parameters import parse, path_of
from server.clock import Clock, at
from server.db.engine import reading, reading_beside

Turns = WeakValueDictionary[int, Semaphore]
POLL_S = 1.0
"""How often it is looked whether there is something to tell to who waits."""
_MANY = 500
AT_ONCE = 3  # questions of one organisation; the next wait, so none has all connections


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be answered."""

    connection: asyncpg.Connection
    now: datetime
    path: dict[str, str]
    beside: Callable[[asyncpg.Connection], AbstractAsyncContextManager[asyncpg.Connection | None]]

    @property
    def now_s(self) -> int:
        return int(self.now.timestamp())

    async def organisation(self) -> int:
        """Return the organisation that this transaction sees."""
        found: int = await self.connection.fetchval("select current_organisation()")
        return found


@dataclass(frozen=True, slots=True)
class Route:
    """One route; `row` is the struct of a row of its answer, where it has rows.

    With a `body`, that is what the handler is given, beside the call. One that `waits` is asked
    again until its answer has `data`, for as many seconds as its parameter `wait` says; while it
    waits it holds neither a connection nor its organisation's turn.
    """

    path: str
    summary: str
    parameters: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    row: type[msgspec.Struct] | None
    handler: Callable[..., Awaitable[msgspec.Struct]]
    scope: str = "read"
    method: str = "GET"
    body: type[msgspec.Struct] | None = None
    waits: bool = False

    @property
    def makes(self) -> bool:
        """Whether it makes something: none of these does."""
        return False


def served(
    route: Route,
    pool: asyncpg.Pool,
    clock: Clock,
    sign_in: SignIn,
    limit: RateLimit,
    turns: Turns,
) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        caller = await admitted(request, sign_in, limit, scope=route.scope)
        path, parameters = path_of(request), parse(request, route.parameters)
        if route.body is not None:
            parameters = parsed(await body_of(request), route.body)
        kind = wanted_format(request, getattr(parameters, "format", None))
        name, mine = f"api {route.path}", turns.setdefault(caller.organisation, Semaphore(AT_ONCE))
        tries = 1 + (getattr(parameters, "wait", 0) if route.waits else 0)
        beside = partial(reading_beside, pool, organisation=caller.organisation)
        while True:
            async with mine, reading(pool, name, organisation=caller.organisation) as found:
                call = Call(found, at(clock.now_ms()), path, beside)
                answer = await route.handler(call, parameters)
            tries -= 1
            if tries == 0 or getattr(answer, "data", None) or request.transport is None:
                break
            await sleep(POLL_S)
        rows = len(getattr(answer, "data", None) or ())
        if rows > _MANY:  # to write and to hash so many takes too long for the event loop
            return await to_thread(respond, request, answer, kind=kind, row=route.row)
        return respond(request, answer, kind=kind, row=route.row)

    return serve
