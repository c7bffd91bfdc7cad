"""A server for the length of a command: the one that runs already, or one started for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from ops.chaos.child import Child, vestibule
from ops.deployment import Deployment, environment, home
from server.db.migrate import migrate
from server.errors import UnavailableError

READY_S = 60.0
POLL_S = 0.2


@asynccontextmanager
async def server_running(found: Deployment) -> AsyncIterator[str]:
    """Yield the server's base address once it is ready; what was started here is ended here."""
    await migrate(found.owner_dsn.reveal())
    base = f"http://{found.settings.http_host}:{found.settings.http_port}"
    if await _is_ready(base):
        yield base
        return
    log = home() / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    child = Child("server", vestibule("serve"), Path(log), environment(found.settings))
    child.start()
    try:
        await _until_ready(base, child)
        yield base
    finally:
        await asyncio.to_thread(child.end)


async def _until_ready(base: str, child: Child) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + READY_S
    while not await _is_ready(base):
        if not child.running or loop.time() > until:
            raise UnavailableError(f"the server does not come up; its log ends:\n{child.tail()}")
        await asyncio.sleep(POLL_S)


async def _is_ready(base: str) -> bool:
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{base}/readyz") as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
