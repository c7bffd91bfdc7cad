"""What devices fetch at their listener: signed metadata, and artifacts at their site's pace.

The device shows its certificate on each, and is heard by the rules of `server.provisioning.renew`
(1 to 6).

- `GET /v1/update/metadata/<name>.json`: what is approved, as `vestibule release` has published it.
  It is signed offline and no secret; the device checks it, and nothing here does.
- `GET /v1/update/artifacts/<sha256>`: the bytes of a release that is under way of this device, and
  of nothing else; `Range` and `If-Range` take up what was cut off. A site's devices share its cap:
  who comes while it is used up hears 429 and when to come again.

An answer that is read too slowly is ended: it may be taken up where it was cut.
"""

import asyncio
import hashlib
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from aiohttp import web
from cryptography import x509

from server import metrics
from server.db.engine import transaction
from server.firmware.artifacts import CHUNK, Allowance, Span, Store, UnsatisfiableError, span_of
from server.firmware.office import Office
from server.firmware.wanted import Grant, granted
from server.provisioning.listener import peer_certificate
from server.provisioning.renew import hear
from server.provisioning.web import Act, answered, refusal

MOST_ASKS = 60
MOST_OPEN = 4  # downloads of one device at once: one, and what was cut off and not noticed yet
SEND_S = 60.0  # for one chunk of 64 kB: less than the slowest line that a shop has
_METADATA = re.compile(r"timestamp|(?:[1-9][0-9]{0,15}\.)?(?:root|targets|snapshot)")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Files:
    """Where metadata and artifacts lie, and how fast sites may fetch."""

    folder: Path
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    allowance: Allowance = field(init=False)
    asks: Allowance = field(init=False)
    open: Counter[str] = field(default_factory=Counter)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.allowance = Allowance(self.monotonic)
        self.asks = Allowance(self.monotonic, least=MOST_ASKS)
        self.store = Store(self.folder / "artifacts")

    def metadata(self, name: str) -> bytes | None:
        """Return a file of metadata; None if it is not there, or none of ours."""
        if not _METADATA.fullmatch(name):
            return None
        try:
            return (self.folder / "metadata" / f"{name}.json").read_bytes()
        except FileNotFoundError:
            return None


def unhurried(act: Act, files: Files) -> Act:
    """Let one certificate ask `MOST_ASKS` times at once, and once a second from then on."""

    async def handler(request: web.Request) -> web.StreamResponse:
        shown = peer_certificate(request)
        if shown is not None:
            number = x509.load_der_x509_certificate(shown).serial_number
            wait_s = files.asks.wait_s(number, rate=1)
            if wait_s > 0:
                return refusal(request, "too_many", retry_after_s=math.ceil(wait_s))
            files.asks.take(number, 1, rate=1)
        return await act(request)

    return handler


def add_fetching(app: web.Application, *, office: Office, files: Files) -> None:
    """Add the routes to the devices' listener; the office's pool is ingest's."""

    async def metadata(request: web.Request) -> web.Response:
        async with transaction(office.pool, "open metadata") as connection:
            await hear(connection, peer_certificate(request), now=office.now())
        content = await asyncio.to_thread(files.metadata, request.match_info["name"])
        if content is None:
            return refusal(request, "no_such_file")
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=content, content_type="application/json", headers={"ETag": tag})

    async def artifact(request: web.Request) -> web.StreamResponse:
        sha256 = request.match_info["sha256"]
        async with transaction(office.pool, "open artifact") as connection:
            holder = await hear(connection, peer_certificate(request), now=office.now())
            grant = await granted(connection, holder.row, sha256, now=office.now())
        if grant is None:
            return refusal(request, "no_such_file")
        path = await asyncio.to_thread(files.store.find, sha256)
        if path is None:  # published and not here: ours to mend, and the device comes again
            metrics.ARTIFACTS_MISSING.inc()
            log.error("artifact is missing", sha256=sha256, device=grant.device)
            return refusal(request, "unavailable")
        if files.open[grant.device] >= MOST_OPEN:
            return refusal(request, "too_many", retry_after_s=math.ceil(SEND_S))
        files.open[grant.device] += 1
        try:
            return await _sent(request, files, path, sha256, grant)
        finally:
            files.open[grant.device] -= 1
            if not files.open[grant.device]:
                del files.open[grant.device]

    for path, act in (("metadata/{name}.json", metadata), ("artifacts/{sha256}", artifact)):
        handler = unhurried(answered(act), files)
        app.router.add_get(f"/v1/update/{path}", handler, allow_head=False)


async def _sent(
    request: web.Request, files: Files, path: Path, sha256: str, grant: Grant
) -> web.StreamResponse:
    """Send an artifact, or the part of it that is asked for, at the site's pace."""
    size, tag = path.stat().st_size, f'"{sha256}"'
    asked = request.headers
    headers = {"ETag": tag, "Accept-Ranges": "bytes"}
    if asked.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    try:
        part = span_of(
            asked.get("Range", ""), size=size, condition=asked.get("If-Range", ""), etag=tag
        )
    except UnsatisfiableError:
        return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    if grant.site is not None and grant.rate is not None:
        wait_s = files.allowance.wait_s(grant.site, rate=grant.rate)
        if wait_s > 0:
            metrics.ARTIFACTS_PUT_OFF.inc()
            return refusal(request, "site_busy", retry_after_s=math.ceil(wait_s))
    response = web.StreamResponse(status=200 if part is None else 206, headers=headers)
    response.content_type = "application/octet-stream"
    span = part or Span(0, size)
    response.content_length = span.end - span.start
    if part is not None:
        response.headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
    await response.prepare(request)
    try:
        await _stream(response, files, path, span, grant)
        await response.write_eof()
    except (OSError, TimeoutError, EOFError) as error:  # the head is out: nothing else can be said
        log.info("artifact cut off", device=grant.device, error=str(error) or repr(error))
        if request.transport is not None:
            request.transport.abort()
    return response


async def _stream(
    response: web.StreamResponse, files: Files, path: Path, span: Span, grant: Grant
) -> None:
    """Send bytes of a file. Raises OSError, TimeoutError; EOFError if it has become shorter."""
    with path.open("rb") as file:
        file.seek(span.start)
        left = span.end - span.start
        # a second's worth at most: several who share a slow rate must all hear something
        most = CHUNK if grant.rate is None else min(CHUNK, grant.rate)
        while left:
            chunk = await asyncio.to_thread(file.read, min(most, left))
            if not chunk:
                raise EOFError(f"{path.name} ended {left} bytes early")
            if grant.site is not None and grant.rate is not None:
                wait_s = files.allowance.take(grant.site, len(chunk), rate=grant.rate)
                if wait_s > 0:
                    await files.sleep(wait_s)
            async with asyncio.timeout(SEND_S):
                await response.write(chunk)
            metrics.ARTIFACT_BYTES.inc(len(chunk))
            left -= len(chunk)
