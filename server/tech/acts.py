"""What a phone did, at once or while it had no signal: carried out one by one, each answered.

An act has the phone's own number: sent again it is answered the same (`server.provisioning.once`).
Who may do it is asked for each act by itself, in this order; the same numbers stand in the code:

1. Somebody is signed in, it is whoever did it, and may provision at the site. Else:
2. It carries a voucher that held when it was done, and is about the voucher's site.

So what was done in a cellar arrives even if the session has ended meanwhile. What an act changes,
its audit and its answer are one transaction; a device that can be placed at once is placed in the
next, or by the sweep.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, assert_never

import asyncpg
import msgspec
import structlog

from server.audit.log import record
from server.db.engine import acting, overseeing, reading, transaction
from server.errors import RefusedError
from server.fleet.lifecycle import State
from server.fleet.spots import Spot
from server.people import users
from server.people.roles import Permission, Place
from server.people.sessions import Visitor
from server.provisioning import placing, technician
from server.provisioning.lives import advance
from server.provisioning.once import once
from server.provisioning.technician import Claimed
from server.provisioning.vouchers import Voucher, VoucherSigner, check_voucher, known_voucher
from server.tech import spots
from server.tech.installation import (
    Installation,
    installation,
    plain,
    read_walk,
    result_of,
    stretch,
    told,
)
from server.tech.places import Where, site_of
from server.tech.refusals import refused

log = structlog.get_logger(__name__)

MOST_ACTS = 100
MOST_STAFF = 80
Number = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Ref = Annotated[str, msgspec.Meta(max_length=64)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=4_102_444_800_000)]


class Act(msgspec.Struct, tag_field="kind", forbid_unknown_fields=True, kw_only=True):
    """What all acts say. `user`: who did it; `voucher`: by which right, if nobody is signed in."""

    act: Number
    at_ms: Millis
    user: Ref = ""
    voucher: Annotated[str, msgspec.Meta(max_length=600)] = ""

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.at_ms / 1000, UTC)


class AddSpot(Act, tag="spot"):
    """A spot is made; the phone has drawn its ref, so that a claim made offline can name it."""

    site: Ref
    ref: Ref
    takes: str
    name: Annotated[str, msgspec.Meta(max_length=200)]
    door: Annotated[str, msgspec.Meta(max_length=200)] = ""
    purpose: Ref = "entrance"
    height_cm: int | None = None


class Claim(Act, tag="claim"):
    """A label was read: its device is to stand at the spot."""

    spot: Ref
    label: Annotated[str, msgspec.Meta(max_length=100)]
    replaces: Ref = ""
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Bind(Act, tag="bind"):
    """The same under a voucher: the phone keeps no secret, only the proof that it read one."""

    spot: Ref
    serial: Ref
    proof: Annotated[str, msgspec.Meta(max_length=128)]
    replaces: Ref = ""


class WalkTest(Act, tag="walk"):
    """A walk test was done. `claim`: its ref, or the number of the act that opened it."""

    claim: Ref
    begun_ms: Millis
    until_ms: Millis
    taps: Annotated[list[tuple[Millis, str]], msgspec.Meta(max_length=2_000)]


class SignOff(Act, tag="sign off"):
    """Somebody of the store has signed for it."""

    claim: Ref
    staff: Annotated[str, msgspec.Meta(max_length=200)]


_UNKNOWN = {"site": "unknown_site", "spot": "unknown_spot", "claim": "no_such_claim"}
AnyAct = AddSpot | Claim | Bind | WalkTest | SignOff


@dataclass(frozen=True, slots=True)
class Doer:
    """By whose right an act is done."""

    user_id: int
    actor: str
    visitor: Visitor | None
    voucher: Voucher | None

    def may(self, where: Where) -> bool:
        if self.visitor is not None:
            place = Place(where.organisation, where.region, where.site)
            return self.visitor.may(Permission.PROVISION, place)
        return self.voucher is not None and self.voucher.site == where.site


def doer_of(found: Visitor) -> Doer:
    """Return somebody who acts by their own right."""
    return Doer(found.user_id, found.actor, found, None)


class Acts:
    """Carries acts out. `desk`, `api`, `ingest`: the pools of those roles."""

    def __init__(
        self,
        *,
        desk: asyncpg.Pool,
        api: asyncpg.Pool,
        ingest: asyncpg.Pool,
        signer: VoucherSigner,
        now: Callable[[], datetime],
    ) -> None:
        self._desk, self._api, self._ingest = desk, api, ingest
        self._signer, self._now = signer, now

    async def carry_out(self, raw: msgspec.Raw, found: Visitor | None) -> dict[str, str]:
        """Do an act and return its answer, such as {"claim": its ref}. Raises RefusedError."""
        try:
            act = msgspec.json.decode(raw, type=AnyAct)
        except msgspec.DecodeError as error:
            log.info("phone act malformed", error=str(error))
            raise refused("bad_act") from error
        doer = await self._doer(act, found)
        match act:
            case AddSpot():
                return await self._add_spot(act, doer)
            case Claim():
                return await self._claim(act, doer)
            case Bind():
                return await self._bind(act, doer)
            case WalkTest():
                return await self._walk(act, doer)
            case SignOff():
                return await self._sign_off(act, doer)
            case _:
                assert_never(act)

    async def _doer(self, act: AnyAct, found: Visitor | None) -> Doer:
        if found is not None and act.user in ("", found.user_ref):  # 1
            return doer_of(found)
        if not act.voucher:
            raise refused("sign_in")
        # a voucher names its organisation; before it is read, none is known
        async with overseeing(self._desk, "know voucher") as connection:  # 2
            try:
                held = await check_voucher(connection, self._signer, act.voucher, at=act.at)
            except RefusedError as error:
                if error.code != "voucher_spent" and not isinstance(act, Bind):
                    raise
                held = await known_voucher(connection, self._signer, act.voucher)
            await _demand_right(connection, held)
        return Doer(held.user_id, f"voucher {held.ref}", None, held)

    async def where(self, doer: Doer, **named: str) -> Where:
        """Return the site of a site's, spot's or claim's ref. RefusedError as if it were not."""
        for organisation in _organisations(doer):
            async with acting(self._desk, "find place", organisation=organisation) as connection:
                found = await site_of(connection, **named)
            if found is not None and doer.may(found):
                return found
        raise refused(_UNKNOWN[next(iter(named))])

    async def _once(
        self,
        act: AnyAct,
        doer: Doer,
        organisation: int,
        do: Callable[[asyncpg.Connection], Awaitable[dict[str, str]]],
        name: str,
    ) -> dict[str, str]:
        async with acting(self._desk, name, organisation=organisation) as connection:
            return await once(
                connection,
                lambda: do(connection),
                user_id=doer.user_id,
                act_ref=act.act,
                act=name,
                organisation=organisation,
                now=self._now(),
            )

    async def _add_spot(self, act: AddSpot, doer: Doer) -> dict[str, str]:
        where = await self.where(doer, site=act.site)

        async def do(connection: asyncpg.Connection) -> dict[str, str]:
            await spots.add(
                connection,
                where,
                Spot(act.name, act.takes, purpose=act.purpose, height_cm=act.height_cm),
                ref=act.ref,
                door=act.door,
                actor=doer.actor,
                now=self._now(),
            )
            return {"spot": act.ref}

        return await self._once(act, doer, where.organisation, do, "spot added")

    async def _claim(self, act: Claim, doer: Doer) -> dict[str, str]:
        where = await self.where(doer, spot=act.spot)
        now = self._now()
        async with acting(self._desk, "open claim", organisation=where.organisation) as connection:
            claim = await technician.open_claim(
                connection,
                user_id=doer.user_id,
                device=act.label,
                spot_ref=act.spot,
                since=act.at,
                now=now,
                replaces=act.replaces or None,
                reason=act.reason.strip(),
                voucher=doer.voucher,
                act_ref=act.act,
            )
        return await self._placed(claim, doer)

    async def _bind(self, act: Bind, doer: Doer) -> dict[str, str]:
        organisation = await self._bound_in(act, doer)
        async with acting(self._desk, "bind device", organisation=organisation) as connection:
            claim = await technician.bind(
                connection,
                self._signer,
                voucher=act.voucher,
                serial=act.serial,
                proof=act.proof,
                spot_ref=act.spot,
                at=act.at,
                act_ref=act.act,
                now=self._now(),
                replaces=act.replaces or None,
            )
        return await self._placed(claim, doer)

    async def _bound_in(self, act: Bind, doer: Doer) -> int:
        if doer.voucher is not None:
            return doer.voucher.organisation
        async with overseeing(self._desk, "know voucher") as connection:
            held = await known_voucher(connection, self._signer, act.voucher)
            await _demand_right(connection, held)
        return held.organisation

    async def _placed(self, claim: technician.TechnicianClaim, doer: Doer) -> dict[str, str]:
        """Place a device that is enrolled already; it is not undone if that has to wait."""
        if claim.ready:
            try:
                async with transaction(self._ingest, "complete claim") as connection:
                    await placing.complete(connection, claim.ref, actor=doer.actor, now=self._now())
            except RefusedError as error:  # the world has changed since; the sweep writes it off
                log.warning("claim not completed", claim=claim.ref, code=error.code)
        return {"claim": claim.ref, "device": claim.device}

    async def _walk(self, act: WalkTest, doer: Doer) -> dict[str, str]:
        ref = await self._claim_ref(act.claim, doer)
        where = await self.where(doer, claim=ref)
        walk = read_walk(act.begun_ms, act.until_ms, act.taps, now=self._now())

        async def do(connection: asyncpg.Connection) -> dict[str, str]:
            await connection.execute(
                "update technician_claims set walk = $2 where ref = $1 and signed_off_at is null",
                ref,
                walk.stored(),
            )
            return {"claim": ref}

        return await self._once(act, doer, where.organisation, do, "walk test done")

    async def _sign_off(self, act: SignOff, doer: Doer) -> dict[str, str]:
        ref = await self._claim_ref(act.claim, doer)
        where = await self.where(doer, claim=ref)
        staff = " ".join(act.staff.split())
        if not staff or len(staff) > MOST_STAFF or not staff.isprintable():
            raise refused("bad_staff")
        now = self._now()
        at = min(act.at, now)

        async def do(connection: asyncpg.Connection) -> dict[str, str]:
            found = await installation(connection, ref, now=now)
            if found is None:
                raise refused("no_such_claim")
            if found.claimed in (Claimed.ENDED, Claimed.EXPIRED):
                raise refused("claim_over")
            if found.claimed is not Claimed.USED:
                raise refused("not_installed")
            await sign_off(connection, found, staff=staff, at=at, actor=doer.actor, now=now)
            return {"claim": ref}

        return await self._once(act, doer, where.organisation, do, "installation signed off")

    async def _claim_ref(self, named: str, doer: Doer) -> str:
        """Return a claim's ref; an act's number leads to the claim that it opened."""
        if named.startswith("claim-"):
            return named
        for organisation in _organisations(doer):
            async with acting(self._desk, "find act", organisation=organisation) as connection:
                answer = await connection.fetchval(
                    "select answer from phone_acts where user_id = $1 and act_ref = $2",
                    doer.user_id,
                    named,
                )
            if answer is not None:
                return str(json.loads(answer).get("claim", ""))
        raise refused("act_waits")

    async def write_down(self, found: Installation, organisation: int) -> None:
        """Keep what came out of a walk test, once the device has told of all of it.

        Minutes are not kept for ever; the sheet is.
        """
        if found.walk is None or found.signed_off_at is None:
            return
        now = self._now()
        since, until = stretch(found.walk, now=now)
        async with reading(self._api, "walk test", organisation=organisation) as connection:
            heard = await told(connection, found, since=since, until=until)
        result = result_of(found.walk, heard)
        if not result.whole:
            return
        async with acting(self._desk, "walk result", organisation=organisation) as connection:
            await connection.execute(
                "update technician_claims set walk = walk || jsonb_build_object('result', "
                "$2::jsonb) where id = $1 and not walk ? 'result'",
                found.row,
                json.dumps(plain(result)),
            )


async def _demand_right(connection: asyncpg.Connection, held: Voucher) -> None:
    """Refuse a voucher whose user may not provision at its site any more."""
    if not await users.may_at_site(connection, held.user_id, Permission.PROVISION, held.site):
        raise refused("voucher_withdrawn")


async def sign_off(
    connection: asyncpg.Connection,
    found: Installation,
    *,
    staff: str,
    at: datetime,
    actor: str,
    now: datetime,
) -> None:
    """Put a device into service; what is signed off already stays. The name is not audited."""
    await advance(connection, found.device_row, State.IN_SERVICE, now=now)
    signed = await connection.fetchval(
        "update technician_claims set signed_off_at = $2, signed_off_by = $3 "
        "where id = $1 and signed_off_at is null returning true",
        found.row,
        max(at, found.since),
        staff,
    )
    if signed:
        await record(
            connection,
            actor=actor,
            act="installation signed off",
            subject=found.device,
            detail={"claim": found.ref, "spot": found.spot, "walk": found.walk is not None},
            organisation=await connection.fetchval(
                "select organisation_id from technician_claims where id = $1", found.row
            ),
            now=now,
        )


def _organisations(doer: Doer) -> Sequence[int]:
    """Return the organisations in which somebody may find something; row-level security on."""
    if doer.visitor is None:
        return [doer.voucher.organisation] if doer.voucher is not None else []
    granted = {
        grant.organisation for grant in doer.visitor.grants if grant.organisation is not None
    }
    looked_at = doer.visitor.organisation
    return sorted(granted | ({looked_at} if looked_at is not None else set()))
