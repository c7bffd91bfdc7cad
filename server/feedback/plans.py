"""`GET /v1/plan` at the devices' listener: what a device is to show, signed.

The device shows its certificate, and is heard by the same rules as for a renewal
(`server.provisioning.renew`, 1 to 6). It gets 200 with an envelope (`protocol.questionnaire`), or
304 if that is what it names as `If-None-Match`: that is how it says what it holds.

The plan is signed by a service's certificate of its own, `svc-content`: no device, and no other
service of ours, can make a plan that a device takes. See `ops/decisions/0009-questionnaires.md`.
"""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import asyncpg
import structlog
from aiohttp import web

from protocol.plan import SIGNED, Envelope, Plan
from server.db.engine import transaction
from server.feedback.questionnaires import plan_of
from server.firmware import carried, granting, showing
from server.firmware.waves import Payload
from server.pki.service import ServiceSigner
from server.provisioning.listener import peer_certificate
from server.provisioning.renew import hear
from server.provisioning.web import answered

log = structlog.get_logger(__name__)


class ContentSigner(ServiceSigner):
    """Signs plans, and what else devices show."""

    __slots__ = ()
    SERVICE = "svc-content"

    def sealed(self, plan: bytes, questionnaires: list[bytes]) -> Envelope:
        """Return a signed envelope; the same plan gets the same signature."""
        return Envelope(plan, self.signed(SIGNED + plan), self.chain, tuple(questionnaires))


def add_plans(
    app: web.Application, *, pool: asyncpg.Pool, pki: Path, now: Callable[[], datetime]
) -> None:
    """Add the route to the devices' listener; `pool` is ingest's."""

    async def serve(request: web.Request) -> web.Response:
        async with transaction(pool, "read plan") as connection:
            asking = await hear(connection, peer_certificate(request), now=now())
            plan, contents, awaited = await _answer(connection, asking.row, now=now())
        # read at each answer: a certificate that was replaced needs no restart
        signer = await asyncio.to_thread(ContentSigner.load, pki)
        sealed = signer.sealed(plan.content(), sorted(contents)).content()
        tag = f'"{hashlib.sha256(sealed).hexdigest()[:32]}"'
        if request.headers.get("If-None-Match") == tag:
            if awaited:
                async with transaction(pool, "note plan held") as connection:
                    await hear(connection, peer_certificate(request), now=now())
                    await showing.holds(connection, asking.row, plan, now=now())
            return web.Response(status=304, headers={"ETag": tag})
        log.info("plan given", device=asking.device, shown=len(plan.show))
        return web.Response(body=sealed, content_type="application/json", headers={"ETag": tag})

    app.router.add_get("/v1/plan", answered(serve))


async def _answer(
    connection: asyncpg.Connection, device: int, *, now: datetime
) -> tuple[Plan, list[bytes], bool]:
    """Return what a device (its row, locked) is to show, with what it is granted now.

    And the contents that this names, and whether a rollout waits to hear that the device holds it.
    """
    rolled = await carried.concerns(connection, device, Payload.QUESTIONNAIRE)
    if rolled:
        await showing.asking(connection, device)
        await granting.grant(connection, device, now=now, payload=Payload.QUESTIONNAIRE)
    plan, contents = await plan_of(connection, device, now=now)
    return plan, contents, rolled and await showing.told(connection, device, now=now)
