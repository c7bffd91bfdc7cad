"""Routes that change something, or read it to be changed: as the desk, audited, done once.

Reading takes the scope `read`, writing the route's own. A change says by `If-Match` which state it
has seen, as the ETag of the answer before; one that comes second is refused (`changed_meanwhile`).
A POST may bear an `Idempotency-Key`: the same key with the same body gets the same answer for a
day, however often it is sent, and what it makes is made once.
"""

import hashlib
import re
from asyncio import Semaphore
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

import asyncpg
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from server.api.answers import respond
from server.api.bodies import body_of, parsed
from server.api.keys import RateLimit, SignIn, admitted
from server.api.parameters import Format, Nothing, parse, path_of
from server.api.problems import (
    BodyError,
    KeyReusedError,
    PreconditionError,
)
from server.clock import Clock, at
from server.db.engine import acting
from server.errors import NotFoundError, UnavailableError
from server.people.sealing import Seal

KEPT = timedelta(days=1)
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_REF = re.compile(r"[A-Za-z0-9-]{1,64}")
Turns = WeakValueDictionary[int, Semaphore]


@dataclass(frozen=True, slots=True)
class Act:
    """One request, ready to be carried out."""

    connection: asyncpg.Connection
    organisation: int
    actor: str
    now: datetime
    path: dict[str, str]
    seen: str | None
    seal: Seal | None = None
    base: str = ""
    """Where people reach the pages."""

    @property
    def by(self) -> dict[str, Any]:
        return {"actor": self.actor, "now": self.now}

    @property
    def ref(self) -> str:
        """The address's ref; NotFoundError for what is none of ours."""
        found = self.path["ref"]
        if not _REF.fullmatch(found):
            raise NotFoundError("there is nothing of this name")
        return found


@dataclass(frozen=True, slots=True)
class ActRoute:
    """One route; `body` is the struct of what is sent, None where nothing is."""

    method: str
    path: str
    summary: str
    answer: type[msgspec.Struct]
    handler: Callable[..., Awaitable[msgspec.Struct]]
    body: type[msgspec.Struct] | None = None
    parameters: type[msgspec.Struct] = Nothing
    row: type[msgspec.Struct] | None = None
    write: str = "register:write"
    shown_once: bool = False
    """Its answer holds secrets, so none is kept, and no Idempotency-Key is taken."""
    compares: bool = False
    """It says by If-Match which state it has seen, as a PATCH does."""

    @property
    def scope(self) -> str:
        """What a key must hold."""
        return "read" if self.method == "GET" else self.write

    @property
    def makes(self) -> bool:
        """Whether it makes something, and so may bear an Idempotency-Key."""
        return self.method == "POST" and not self.shown_once


def written(scope: str, *routes: ActRoute) -> tuple[ActRoute, ...]:
    """Return routes as those of whoever may write this part: keys with `scope`."""
    return tuple(replace(route, write=scope) for route in routes)


def served(
    route: ActRoute,
    *,
    desk: asyncpg.Pool | None,
    clock: Clock,
    sign_in: SignIn,
    limit: RateLimit,
    turns: Turns,
    at_once: int,
    seal: Seal | None = None,
    base: str = "",
) -> Handler:
    """Return the handler of a route; `desk` is the desk's pool."""

    async def serve(request: web.Request) -> web.StreamResponse:
        caller = await admitted(request, sign_in, limit, scope=route.scope)
        if desk is None:
            raise UnavailableError("nothing is changed here")
        path, _ = path_of(request), parse(request, route.parameters)
        raw = b"" if route.body is None else await body_of(request)
        body = None if route.body is None else parsed(raw, route.body)
        seen = _seen(request) if route.compares or route.method == "PATCH" else None
        mine = turns.setdefault(caller.organisation, Semaphore(at_once))
        name = f"api {route.method} {route.path}"
        async with mine, acting(desk, name, organisation=caller.organisation) as connection:
            act = Act(
                connection,
                caller.organisation,
                caller.by,
                at(clock.now_ms()),
                path,
                seen,
                seal,
                base or f"http://{request.host}",
            )
            once = _Once.of(request, route, act, raw)
            known = None if once is None else await once.known()
            if known is not None:
                answer = msgspec.json.decode(known, type=route.answer)
            else:
                answer = await (route.handler(act) if body is None else route.handler(act, body))
                if once is not None:
                    await once.keep(msgspec.json.encode(answer))
        response = respond(request, answer, kind=Format.JSON, row=None)
        if route.makes and response.status == 200:
            response.set_status(201)
            named = getattr(answer, answer.__struct_fields__[0])
            if isinstance(named, str):  # what was stored as a batch has no name
                response.headers["Location"] = f"/v1{route.path}/{named}"
        return response

    return serve


def _seen(request: web.Request) -> str | None:
    """Return the version of If-Match, None for `*`. Raises PreconditionError without one."""
    given = request.headers.get("If-Match", "").strip()
    if not given:
        raise PreconditionError("send the ETag that you have seen as If-Match")
    if given == "*":
        return None
    return given.removeprefix("W/").strip('"').split("-")[0]


@dataclass(frozen=True, slots=True)
class _Once:
    """A write that is done once."""

    act: Act
    key: str
    digest: bytes

    @classmethod
    def of(cls, request: web.Request, route: ActRoute, act: Act, raw: bytes) -> "_Once | None":
        key = request.headers.get("Idempotency-Key")
        if key is None or route.method != "POST":
            return None
        if route.shown_once:
            raise BodyError("", "this answer is never kept, so no Idempotency-Key is taken")
        if not _KEY.fullmatch(key):
            raise BodyError("", "an Idempotency-Key has 1 to 128 visible ASCII characters")
        digest = hashlib.sha256(f"{route.method} {route.path}\n".encode() + raw).digest()
        return cls(act, key, digest)

    async def known(self) -> bytes | None:
        """Return the answer given before; waits for one who does the same just now."""
        act = self.act
        await act.connection.execute(
            "delete from idempotency_keys where created_at < $1", act.now - KEPT
        )
        row = await act.connection.fetchrow(
            "insert into idempotency_keys (organisation_id, caller, key, request_sha256, "
            "created_at) values ($1, $2, $3, $4, $5) on conflict do nothing returning key",
            *(act.organisation, act.actor, self.key, self.digest, act.now),
        )
        if row is not None:
            return None
        found = await act.connection.fetchrow(
            "select request_sha256, answer from idempotency_keys where caller = $1 and key = $2",
            *(act.actor, self.key),
        )
        if found is None or found["request_sha256"] != self.digest:
            raise KeyReusedError("this Idempotency-Key was used for another request")
        answer: bytes = found["answer"]
        return answer

    async def keep(self, answer: bytes) -> None:
        await self.act.connection.execute(
            "update idempotency_keys set answer = $3 where caller = $1 and key = $2",
            *(self.act.actor, self.key, answer),
        )
