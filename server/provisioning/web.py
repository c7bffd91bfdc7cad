"""The two HTTPS routes a device calls before it has a certificate: `/v1/trust`, `/v1/enrol`."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import asyncpg
import msgspec
import structlog
from aiohttp import web

from server.errors import RefusedError
from server.pki.authority import Authority
from server.provisioning.enrol import enrol

log = structlog.get_logger(__name__)

MAX_REQUEST = 16 * 1024  # a claim and a P-256 request have 1 kB


class EnrolRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a device sends."""

    claim: str
    csr: str

    def __repr__(self) -> str:
        return "EnrolRequest(…)"  # the claim is a secret


def build_enrolment(
    *,
    pool: asyncpg.Pool,
    pki: Path,
    broker: tuple[str, int],
    now: Callable[[], datetime],
) -> web.Application:
    """Return the application of the device's HTTPS listener."""
    authority = Authority.load(pki)
    bundle = (pki / "bundle.pem").read_text()

    async def trust(_: web.Request) -> web.Response:
        return web.Response(text=bundle, content_type="application/x-pem-file")

    async def enrolment(request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=EnrolRequest)
        except msgspec.DecodeError as error:
            return _problem(400, "malformed", f"expected claim and csr as JSON: {error}")
        try:
            got = await enrol(pool, authority, secret=wanted.claim, csr_pem=wanted.csr, now=now())
        except RefusedError as error:
            log.warning("enrolment refused", code=error.code)
            return _problem(403, error.code, str(error))
        log.info("device enrolled", device=got.device)
        return web.json_response(
            {
                "device": got.device,
                "kind": got.kind,
                "chain": got.chain_pem,
                "bundle": bundle,
                "broker_host": broker[0],
                "broker_port": broker[1],
            }
        )

    app = web.Application(client_max_size=MAX_REQUEST)
    app.router.add_get("/v1/trust", trust)
    app.router.add_post("/v1/enrol", enrolment)
    return app


def _problem(status: int, code: str, detail: str) -> web.Response:
    return web.json_response(
        {"type": f"urn:vestibule:problem:{code}", "code": code, "status": status, "detail": detail},
        status=status,
        content_type="application/problem+json",
    )
