"""A server for the length of a command: the one that runs already, or one started for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ops.deployment import Deployment, environment, home
from ops.services.child import Child, is_ready, vestibule, wait_ready
from server.db.migrate import migrate


@asynccontextmanager
async def server_running(found: Deployment) -> AsyncIterator[str]:
    """Yield the server's base address once it is ready; what was started here is ended here.

    Raises ServiceFailedError if it does not get ready.
    """
    await migrate(found.owner_dsn.reveal())
    base = f"http://{found.settings.http_host}:{found.settings.http_port}"
    if await asyncio.to_thread(is_ready, base):
        yield base
        return
    log = home() / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    server = Child("server", vestibule("serve"), log, environment(found.settings))
    server.start()
    try:
        await asyncio.to_thread(wait_ready, server, base)
        yield base
    finally:
        await asyncio.to_thread(server.end)
