"""`/v1/update` at the devices' listener: a device says what it runs, and hears what to install.

The device shows its certificate, and is heard by the rules of `server.provisioning.renew` (1 to 6)
and of `offers`; `protocol.update` says what goes to and fro. What it fetches is `fetching`'s.
"""

from aiohttp import web

from protocol.update import MAX_REPORT, read_report, write_answer
from server.firmware.fetching import Files, add_fetching, unhurried
from server.firmware.offers import exchange
from server.firmware.office import Office
from server.provisioning.listener import peer_certificate
from server.provisioning.web import answered, body_of


def add_updates(app: web.Application, *, office: Office, files: Files) -> None:
    """Add the routes to the devices' listener; the office's pool is ingest's."""

    async def update(request: web.Request) -> web.Response:
        signed = read_report(await body_of(request, MAX_REPORT))
        answer = await exchange(office, peer_certificate(request), signed)
        return web.Response(body=write_answer(answer), content_type="application/json")

    app.router.add_post("/v1/update", unhurried(answered(update), files))
    add_fetching(app, office=office, files=files)
