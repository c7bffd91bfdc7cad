"""`POST /v1/codes` at the devices' listener: a kiosk's stock of survey codes, signed.

The device shows its certificate, and is heard by the same rules as for a renewal
(`server.provisioning.renew`, 1 to 6). It says what it holds, {"offer", "left", "until"} or {}, and
gets 200 with {"standing": ...}: `none`, nothing is offered where it stands; `keep`, what it holds
is good still; `new` with the `envelope` (`protocol.codes`) of a stock that replaces it. What is
lost on its way is never shown, and ends with its time.

The stock is signed like a plan, by `svc-content`: what an edited card, or whoever ends our TLS,
would have a kiosk show leads nowhere.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import asyncpg
import msgspec
import structlog
from aiohttp import web

from protocol.codes import MAX_CODES, SIGNED, Envelope
from server.db.engine import transaction
from server.feedback.offers import Enough, Held, stock_of
from server.feedback.plans import ContentSigner
from server.provisioning.listener import peer_certificate
from server.provisioning.renew import hear
from server.provisioning.web import answered

log = structlog.get_logger(__name__)


class CodesRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What the kiosk holds; nothing: no stock that it can show."""

    offer: str = ""
    left: int = 0
    until: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.left <= MAX_CODES or len(self.offer) > 64:
            raise ValueError(f"up to {MAX_CODES} codes of an offer")


class CodesAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of the kiosk's stock."""

    standing: str
    envelope: str = ""


@dataclass(frozen=True, slots=True)
class Handing:
    """What codes are made with: the key of tokens, and the address that they lead to."""

    key: bytes
    address: str
    random: Callable[[int], bytes] = secrets.token_bytes


def add_codes(
    app: web.Application,
    *,
    pool: asyncpg.Pool,
    pki: Path,
    handing: Handing,
    now: Callable[[], datetime],
) -> None:
    """Add the route to the devices' listener; `pool` is ingest's."""

    async def answer(request: web.Request) -> CodesAnswer:
        held = msgspec.json.decode(await request.read(), type=CodesRequest)
        # read at each answer: a certificate that was replaced needs no restart
        signer = await asyncio.to_thread(ContentSigner.load, pki)
        try:
            async with transaction(pool, "hand out codes") as connection:
                asking = await hear(connection, peer_certificate(request), now=now())
                stock = await stock_of(
                    connection,
                    asking.row,
                    Held(held.offer, held.left, held.until),
                    key=handing.key,
                    address=handing.address,
                    random=handing.random,
                    now=now(),
                )
        except Enough:
            return CodesAnswer("keep")
        if stock is None:
            return CodesAnswer("none")
        content = stock.content()
        signature = signer.signed(SIGNED + content)
        log.info("codes handed out", device=asking.device, offer=stock.offer, n=len(stock.codes))
        return CodesAnswer("new", Envelope(content, signature, signer.chain).content().decode())

    async def serve(request: web.Request) -> web.Response:
        said = msgspec.json.encode(await answer(request))
        return web.Response(body=said, content_type="application/json")

    app.router.add_post("/v1/codes", answered(serve))
