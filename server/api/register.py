"""The register's routes of /v1: regions, sites with their hours, doors, spots and devices.

Reading takes the scope `read`, writing `register:write`. A change says by `If-Match` which state it
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
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import asyncpg
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from server.api.answers import respond
from server.api.keys import RateLimit, SignIn, demand_scope
from server.api.parameters import Format, Nothing, parse
from server.api.problems import (
    BodyError,
    KeyReusedError,
    MediaTypeError,
    PreconditionError,
    TooLargeError,
)
from server.api.types import (
    DoorRecord,
    DoorWrite,
    NewDoor,
    NewRegion,
    NewSite,
    NewSpot,
    Page,
    RegionRecord,
    RegionWrite,
    SiteRecord,
    SiteWrite,
    SpotRecord,
    SpotWrite,
)
from server.clock import Clock, at
from server.db.engine import acting
from server.errors import NotFoundError, UnavailableError
from server.fleet import doors, hours, organisations, sites, spots
from server.fleet.checks import Known
from server.fleet.doors import Door
from server.fleet.organisations import Region
from server.fleet.sites import Site
from server.fleet.spots import Spot

B = TypeVar("B", bound=msgspec.Struct)
WRITE = "register:write"
MOST_BODY = 200_000
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
class RegisterRoute:
    """One route; `body` is the struct of what is sent, None where nothing is."""

    method: str
    path: str
    summary: str
    answer: type[msgspec.Struct]
    handler: Callable[..., Awaitable[msgspec.Struct]]
    body: type[msgspec.Struct] | None = None
    parameters: type[msgspec.Struct] = Nothing
    row: type[msgspec.Struct] | None = None

    @property
    def scope(self) -> str:
        return "read" if self.method == "GET" else WRITE


def served(
    route: RegisterRoute,
    *,
    desk: asyncpg.Pool | None,
    clock: Clock,
    sign_in: SignIn,
    limit: RateLimit,
    turns: Turns,
    at_once: int,
) -> Handler:
    """Return the handler of a route; `desk` is the desk's pool."""

    async def serve(request: web.Request) -> web.StreamResponse:
        caller = await sign_in.caller(request)
        limit.take(caller.by)
        demand_scope(caller, route.scope)
        if desk is None:
            raise UnavailableError("the register is not served here")
        parse(request, route.parameters)
        raw = b"" if route.body is None else await _body_of(request)
        body = None if route.body is None else _parsed(raw, route.body)
        seen = _seen(request) if route.method == "PATCH" else None
        mine = turns.setdefault(caller.organisation, Semaphore(at_once))
        name = f"api {route.method} {route.path}"
        async with mine, acting(desk, name, organisation=caller.organisation) as connection:
            act = Act(
                connection,
                caller.organisation,
                caller.by,
                at(clock.now_ms()),
                dict(request.match_info),
                seen,
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
        if route.method == "POST" and response.status == 200:
            response.set_status(201)
            response.headers["Location"] = f"/v1{route.path}/{_name(answer)}"
        return response

    return serve


def _name(answer: msgspec.Struct) -> str:
    return str(getattr(answer, answer.__struct_fields__[0]))


async def _body_of(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise MediaTypeError("send the body as application/json")
    raw = await request.content.read(MOST_BODY + 1)
    while len(raw) <= MOST_BODY and not request.content.at_eof():
        raw += await request.content.read(MOST_BODY + 1 - len(raw))
    if len(raw) > MOST_BODY:
        raise TooLargeError(f"a body has at most {MOST_BODY} bytes")
    return raw


def _parsed(raw: bytes, kind: type[B]) -> B:
    """Return a body as `kind`. Raises BodyError naming the field."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = re.search(r"unknown field `([^`]*)`", text)
        if unknown:
            raise BodyError(unknown[1][:64], text, code="unknown_field") from error
        field = re.search(r"`\$\.(\w+)|required field `(\w+)`", text)
        raise BodyError(field[1] or field[2] if field else "", text) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError("", f"the body is no JSON: {error}") from error


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
    def of(cls, request: web.Request, route: RegisterRoute, act: Act, raw: bytes) -> "_Once | None":
        key = request.headers.get("Idempotency-Key")
        if key is None or route.method != "POST":
            return None
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


# -- regions -----------------------------------------------------------------------------------


def _region_record(known: Known[Region]) -> RegionRecord:
    return RegionRecord(known.ref, known.facts.name, known.version)


async def _regions(act: Act) -> Page[RegionRecord]:
    found = await organisations.regions(act.connection, act.organisation)
    return Page([_region_record(region) for region in found])


async def _get_region(act: Act) -> RegionRecord:
    return _region_record(
        await organisations.find_region(act.connection, act.organisation, act.ref)
    )


async def _add_region(act: Act, body: NewRegion) -> RegionRecord:
    return _region_record(
        await organisations.add_region(
            act.connection, act.organisation, Region(body.name), **act.by
        )
    )


async def _edit_region(act: Act, body: RegionWrite) -> RegionRecord:
    known = await organisations.find_region(act.connection, act.organisation, act.ref)
    name = known.facts.name if body.name is msgspec.UNSET else body.name
    return _region_record(
        await organisations.edit_region(
            act.connection, act.organisation, act.ref, Region(name), seen=act.seen, **act.by
        )
    )


# -- sites -------------------------------------------------------------------------------------


def _site_record(known: Known[Site]) -> SiteRecord:
    facts = known.facts
    return SiteRecord(
        known.ref,
        facts.name,
        facts.time_zone,
        facts.currency,
        facts.address,
        facts.region,
        hours.write(facts.opening),
        facts.opens_on,
        facts.closes_on,
        known.version,
    )


async def _get_site(act: Act) -> SiteRecord:
    return _site_record(await sites.find(act.connection, act.organisation, act.ref))


async def _add_site(act: Act, body: NewSite) -> SiteRecord:
    wanted = _patched_site(Site(body.name, body.time_zone), body)
    return _site_record(await sites.add(act.connection, act.organisation, wanted, **act.by))


async def _edit_site(act: Act, body: SiteWrite) -> SiteRecord:
    known = await sites.find(act.connection, act.organisation, act.ref)
    wanted = _patched_site(known.facts, body)
    return _site_record(
        await sites.edit(act.connection, act.organisation, act.ref, wanted, seen=act.seen, **act.by)
    )


def _patched_site(site: Site, body: NewSite | SiteWrite) -> Site:
    given = _given(body)
    if "hours" in given:
        given["opening"] = hours.read(given.pop("hours"))
    return replace(site, **given)


def _given(body: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that a body has."""
    found = {name: getattr(body, name) for name in body.__struct_fields__}
    return {name: value for name, value in found.items() if value is not msgspec.UNSET}


# -- doors -------------------------------------------------------------------------------------


async def _door_record(act: Act, ref: str) -> DoorRecord:
    row, known = await doors.find(act.connection, act.organisation, ref)
    site = await act.connection.fetchval("select ref from sites where id = $1", row)
    return DoorRecord(ref, site, known.facts.name, known.facts.behind, known.version)


async def _get_door(act: Act) -> DoorRecord:
    return await _door_record(act, act.ref)


async def _add_door(act: Act, body: NewDoor) -> DoorRecord:
    made = await doors.add(
        act.connection, act.organisation, body.site, Door(body.name, body.behind), **act.by
    )
    return await _door_record(act, made.ref)


async def _edit_door(act: Act, body: DoorWrite) -> DoorRecord:
    _, known = await doors.find(act.connection, act.organisation, act.ref)
    wanted = replace(known.facts, **_given(body))
    await doors.edit(act.connection, act.organisation, act.ref, wanted, seen=act.seen, **act.by)
    return await _door_record(act, act.ref)


# -- spots -------------------------------------------------------------------------------------


async def _spot_record(act: Act, ref: str) -> SpotRecord:
    row, known = await spots.find(act.connection, act.organisation, ref, now=act.now)
    site = await act.connection.fetchval("select ref from sites where id = $1", row)
    facts = known.facts
    return SpotRecord(
        *(ref, site, facts.name, facts.kind, facts.door, facts.purpose, facts.height_cm),
        known.version,
    )


async def _get_spot(act: Act) -> SpotRecord:
    return await _spot_record(act, act.ref)


async def _add_spot(act: Act, body: NewSpot) -> SpotRecord:
    wanted = Spot(body.name, body.kind, body.door, body.purpose, body.height_cm)
    made = await spots.add(act.connection, act.organisation, body.site, wanted, **act.by)
    return await _spot_record(act, made.ref)


async def _edit_spot(act: Act, body: SpotWrite) -> SpotRecord:
    _, known = await spots.find(act.connection, act.organisation, act.ref, now=act.now)
    wanted = replace(known.facts, **_given(body))
    await spots.edit(act.connection, act.organisation, act.ref, wanted, seen=act.seen, **act.by)
    return await _spot_record(act, act.ref)


REGISTER = (
    RegisterRoute("GET", "/regions", "Regions, by name", Page[RegionRecord], _regions),
    RegisterRoute("POST", "/regions", "Add a region", RegionRecord, _add_region, NewRegion),
    RegisterRoute("GET", "/regions/{ref}", "One region", RegionRecord, _get_region),
    RegisterRoute(
        "PATCH", "/regions/{ref}", "Rename a region", RegionRecord, _edit_region, RegionWrite
    ),
    RegisterRoute("POST", "/sites", "Add a site", SiteRecord, _add_site, NewSite),
    RegisterRoute(
        "GET", "/sites/{ref}/record", "One site, as it may be edited", SiteRecord, _get_site
    ),
    RegisterRoute("PATCH", "/sites/{ref}", "Change a site", SiteRecord, _edit_site, SiteWrite),
    RegisterRoute("POST", "/doors", "Add a door", DoorRecord, _add_door, NewDoor),
    RegisterRoute("GET", "/doors/{ref}", "One door", DoorRecord, _get_door),
    RegisterRoute("PATCH", "/doors/{ref}", "Change a door", DoorRecord, _edit_door, DoorWrite),
    RegisterRoute("POST", "/spots", "Add a spot", SpotRecord, _add_spot, NewSpot),
    RegisterRoute("GET", "/spots/{ref}", "One spot", SpotRecord, _get_spot),
    RegisterRoute("PATCH", "/spots/{ref}", "Change a spot", SpotRecord, _edit_spot, SpotWrite),
)
