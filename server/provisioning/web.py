"""The HTTPS routes of devices: `/v1/trust` and `/v1/enrol`, and with a certificate `/v1/renew`.

`POST /v1/enrol` takes {"claim", "csr"}, or {"serial", "secret", "csr"} and perhaps {"voucher"} and
{"spot"}. It answers 200 with the identity, 202 with `retry_after` seconds while a technician's word
is waited for, and else a problem whose `code`, sentence and `then` are a row of `refusals.TABLE`;
the sentence is in the language that `Accept-Language` prefers.

`POST /v1/renew` takes {"csr"} on a connection that shows the device's certificate, and answers with
the next one. `POST /v1/renew/confirm` takes {"roots", "promoted"} on a connection that shows the
new one; `roots` are the SHA-256, in hex, of the keys of the roots that the device trusts.

The answers to enrolment and confirmation hold, as `releases`, the root of the releases' metadata
once there is one; a device that has none yet keeps it, and takes another by its chain alone.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import asyncpg
import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from protocol.content import ContentError
from protocol.label import LabelError, serial_number
from server.db.engine import DATABASE_AWAY
from server.errors import VestibuleError
from server.people.throttle import TooManyTriesError
from server.pki.authority import Authority
from server.pki.files import AuthorityError
from server.provisioning.enrol import Enrolment, Guesses, Pending, Shown, enrol, enrol_by_label
from server.provisioning.listener import peer_certificate
from server.provisioning.refusals import TABLE, Then, language, refused
from server.provisioning.renew import MOST_ROOTS, TooEarlyError, confirm, renew
from server.provisioning.sweep import sweeping
from server.provisioning.vouchers import VoucherSigner

log = structlog.get_logger(__name__)

Act = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_REQUEST = 16 * 1024  # a claim and a P-256 request have 1 kB
WAIT_S = 10  # after what is to be tried again, if nothing else is known
READ_S = 120.0  # a bundle of 256 kB over the slowest line that a shop has


class EnrolRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a device sends: a claim, or what stands on its label."""

    csr: str
    claim: str = ""
    serial: str = ""
    secret: str = ""
    voucher: str = ""
    spot: str = ""

    def __post_init__(self) -> None:
        by_label = bool(self.serial and self.secret)
        if bool(self.claim) == by_label or (self.claim and (self.serial or self.secret)):
            raise ValueError("either a claim, or serial and secret")

    def __repr__(self) -> str:
        return "EnrolRequest(…)"  # claim, secret and voucher are secrets


class RenewRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for a certificate of a new key; whose, the connection says."""

    csr: str


class ConfirmRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The roots that the device trusts, and whether the pair before this is gone."""

    roots: list[str] = []
    promoted: bool = False

    def __post_init__(self) -> None:
        if len(self.roots) > MOST_ROOTS or not all(map(_DIGEST.fullmatch, self.roots)):
            raise ValueError(f"up to {MOST_ROOTS} roots of 64 hexadecimal digits")


_DIGEST = re.compile("[0-9a-f]{64}")


def build_enrolment(
    *,
    pool: asyncpg.Pool,
    pki: Path,
    broker: tuple[str, int],
    now: Callable[[], datetime],
    monotonic: Callable[[], float] = time.monotonic,
    releases: Callable[[], bytes | None] = lambda: None,
) -> web.Application:
    """Return the application of the device's HTTPS listener.

    `releases`: the root of the releases' metadata, which a device keeps as its first one.
    """
    authority = Authority.load(pki)

    async def trust(_: web.Request) -> web.Response:
        return web.Response(text=authority.bundle(), content_type="application/x-pem-file")

    async def swept(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(sweeping(pool, now=now), name="sweep")
        task.add_done_callback(_ended)
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    ask = _asking(pool, authority, VoucherSigner.load(pki), Guesses(monotonic), now=now)
    app = web.Application(client_max_size=MAX_REQUEST, middlewares=[_bounded])
    app.router.add_get("/v1/trust", trust)
    app.router.add_post("/v1/enrol", _enrolment(ask, authority, broker, releases))
    _add_renewal(app, pool=pool, authority=authority, now=now, releases=releases)
    app.cleanup_ctx.append(swept)
    return app


Ask = Callable[[EnrolRequest, str | None], Awaitable[Enrolment | Pending]]


def _asking(
    pool: asyncpg.Pool,
    authority: Authority,
    signer: VoucherSigner,
    guesses: Guesses,
    *,
    now: Callable[[], datetime],
) -> Ask:
    """Return what enrols by a claim or by a label, and counts what was guessed from where."""

    async def ask(wanted: EnrolRequest, address: str | None) -> Enrolment | Pending:
        if wanted.claim:
            try:
                return await enrol(
                    pool, authority, secret=wanted.claim, csr_pem=wanted.csr, now=now()
                )
            except VestibuleError as error:
                if error.code == "unknown_claim":
                    guesses.wrong_claim(address)
                raise
        return await enrol_by_label(
            pool,
            authority,
            signer,
            shown=Shown(_serial(wanted.serial), wanted.secret, wanted.voucher, wanted.spot),
            csr_pem=wanted.csr,
            now=now(),
            guesses=guesses,
            address=address,
        )

    return ask


def _enrolment(
    ask: Ask,
    authority: Authority,
    broker: tuple[str, int],
    releases: Callable[[], bytes | None],
) -> Act:
    """Return the handler of `/v1/enrol`."""

    async def enrolment(request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=EnrolRequest)
        except msgspec.DecodeError as error:
            log.info("enrolment malformed", error=str(error))
            return refusal(request, "malformed")
        try:
            got = await ask(wanted, request.remote)
        except TooManyTriesError as error:
            return refusal(request, "too_many", retry_after_s=math.ceil(error.wait_s))
        except VestibuleError as error:
            code = error.code if error.code in TABLE else "unavailable"
            log.warning("enrolment refused", code=error.code, serial=wanted.serial[:31])
            return refusal(request, code)
        except DATABASE_AWAY as error:
            log.warning("enrolment failed", error=str(error) or type(error).__name__)
            return refusal(request, "unavailable")
        if isinstance(got, Pending):
            return refusal(request, "pending", retry_after_s=got.retry_after_s)
        log.info("device enrolled", device=got.device)
        return web.json_response(
            {
                "device": got.device,
                "kind": got.kind,
                "chain": got.chain_pem,
                "renew_after": got.renew_after.isoformat(),
                "bundle": authority.bundle(),
                "broker_host": broker[0],
                "broker_port": broker[1],
                **await _first_trust(releases),
            }
        )

    return enrolment


def _ended(task: asyncio.Task[None]) -> None:
    """Say so if the sweep ends before the listener does: its claims would wait unseen."""
    if not task.cancelled():
        log.error("sweep ended", exc_info=task.exception())


def _add_renewal(
    app: web.Application,
    *,
    pool: asyncpg.Pool,
    authority: Authority,
    now: Callable[[], datetime],
    releases: Callable[[], bytes | None],
) -> None:
    """Add what a device asks with its certificate; each answer brings the roots of now."""

    async def renewal(request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=RenewRequest)
        issued = await renew(
            pool, authority, shown=peer_certificate(request), csr_pem=wanted.csr, now=now()
        )
        log.info("certificate staged", certificate=issued.serial)
        return web.json_response(
            {
                "chain": issued.chain_pem,
                "not_after": issued.not_after.isoformat(),
                "renew_after": issued.renew_after.isoformat(),
                "bundle": authority.bundle(),
            }
        )

    async def confirmation(request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=ConfirmRequest)
        confirmed = await confirm(
            pool,
            authority,
            shown=peer_certificate(request),
            roots=[bytes.fromhex(text) for text in wanted.roots],
            promoted=wanted.promoted,
            now=now(),
        )
        return web.json_response(
            {
                "device": confirmed.device,
                "state": confirmed.state,
                "not_after": confirmed.not_after.isoformat(),
                "renew_after": confirmed.renew_after.isoformat(),
                "bundle": authority.bundle(),
                **await _first_trust(releases),
            }
        )

    async def in_time(request: web.Request) -> web.Response:
        try:
            return await renewal(request)
        except TooEarlyError as error:
            wait_s = math.ceil((error.renew_after - now()).total_seconds())
            return refusal(request, error.code, retry_after_s=max(1, wait_s))

    app.router.add_post("/v1/renew", answered(in_time))
    app.router.add_post("/v1/renew/confirm", answered(confirmation))


async def _first_trust(releases: Callable[[], bytes | None]) -> dict[str, str]:
    """Return what an answer says of the releases' root: nothing while there is none."""
    try:
        content = await asyncio.to_thread(releases)
    except OSError as error:  # the identity does not wait for it
        log.error("releases' root not read", error=str(error))
        return {}
    return {} if content is None else {"releases": content.decode()}


def answered(act: Act) -> Act:
    """Let what a device asked with its certificate end in an answer or a row of `TABLE`.

    For every route that knows the asker by `renew.hear`: what is malformed, refused, or not to be
    had while database or authority are away. Of who shows no certificate nothing is read.
    """

    async def handler(request: web.Request) -> web.StreamResponse:
        path = request.path
        try:
            if peer_certificate(request) is None:
                raise refused("no_certificate")
            return await act(request)
        except (msgspec.DecodeError, ContentError) as error:
            log.info("device asked malformed", path=path, error=str(error))
            return refusal(request, "malformed")
        except VestibuleError as error:
            log.warning("device refused", path=path, code=error.code, address=request.remote)
            return refusal(request, error.code if error.code in TABLE else "unavailable")
        except (*DATABASE_AWAY, AuthorityError) as error:
            said = str(error) or type(error).__name__
            log.warning("device not answered", path=path, error=said)
            return refusal(request, "unavailable")

    return handler


async def body_of(request: web.Request, most: int) -> bytes:
    """Read a body of at most `most` bytes; one byte more, if there are more.

    Raises TimeoutError: nobody holds a connection by sending on and on.
    """
    found = bytearray()
    async with asyncio.timeout(READ_S):
        async for chunk in request.content.iter_chunked(65_536):
            found += chunk
            if len(found) > most:
                return bytes(found[: most + 1])
    return bytes(found)


@web.middleware
async def _bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a body over `MAX_REQUEST`, which no handler has read, as all else is refused."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        log.info("request too large", path=request.path)
        return refusal(request, "too_large")


def _serial(text: str) -> str:
    """Return a serial as it is written everywhere; what is none stays, and is unknown."""
    try:
        return serial_number(text)
    except LabelError:
        return text[:64]


def refusal(request: web.Request, code: str, *, retry_after_s: int | None = None) -> web.Response:
    """Answer with a row of the table, as a problem."""
    row = TABLE[code]
    body: dict[str, str | int] = {
        "type": f"urn:vestibule:problem:{code}",
        "code": code,
        "status": row.status,
        "detail": row.sentence(language(request.headers.get("Accept-Language", ""))),
        "then": row.then.value,
    }
    headers: dict[str, str] = {}
    if row.then is Then.WAIT:
        wait_s = WAIT_S if retry_after_s is None else retry_after_s
        body["retry_after"] = wait_s
        headers["Retry-After"] = str(wait_s)
    return web.json_response(
        body, status=row.status, headers=headers, content_type="application/problem+json"
    )
