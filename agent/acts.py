"""What a device can be told to do, once: restart, make itself known, examine itself, send its log.

A result is a few names with numbers or short texts; what is longer goes as a file, compressed, and
holds no secret: keys and certificates are never read, settings named like secrets left out.
"""

import asyncio
import gzip
import json
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import structlog

from agent import logs
from agent.config import AgentConfig
from agent.doctor import State, examine
from agent.orders import FailedError, short
from protocol import state as protocol
from protocol.settings import Value
from protocol.state import MAX_FILE, Order

REBOOT_S = 120.0
"""How long a machine may take to stop us after it was told to start anew."""
HELD = ("outbox",)  # by us, so that the doctor would only find it in use
_SECRETS = ("setup_secret", "screen_pin", "serial", "root_sha256")

log = structlog.get_logger(__name__)


class Acts:
    """Carries out commands. `restart` ends this agent, so that it is started anew."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        status: Callable[[], dict[str, object]],
        metrics: Callable[[], dict[str, float]],
        identify: Callable[[], str],
        restart: Callable[[], None],
        send: Callable[[Order, bytes], Awaitable[None]],
    ) -> None:
        self._config = config
        self._status = status
        self._metrics = metrics
        self._identify = identify
        self._restart = restart
        self._send = send

    async def __call__(self, order: Order) -> Mapping[str, Value]:
        """Do a command and return its result. Raises FailedError."""
        match order.kind:
            case protocol.REBOOT:
                return await self._reboot()
            case protocol.IDENTIFY:
                how = self._identify()
                log.warning("identify: this is the device that is meant", shown=how or "log")
                return {"shown": how or "log"}
            case protocol.SELF_TEST:
                return await self._self_test()
            case protocol.DIAGNOSTICS:
                content = await self._diagnosed()
                return await self._sent(order, content)
            case protocol.LOG_TAIL:
                lines = logs.tail(order.lines)
                text = "\n".join(lines)
                sent = await self._sent(order, await asyncio.to_thread(_packed, text))
                return {**sent, "lines": len(lines)}
            case _:
                raise FailedError("unknown_command")

    async def _reboot(self) -> Mapping[str, Value]:
        """End this start: by the machine's own command, if the settings name one."""
        if self._config.reboot:
            await self._machine(shlex.split(self._config.reboot))
        self._restart()
        await asyncio.get_running_loop().create_future()  # what was begun ends with the next start
        raise AssertionError

    async def _machine(self, words: list[str]) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
            _, said = await asyncio.wait_for(process.communicate(), REBOOT_S)
        except (OSError, ValueError, TimeoutError) as error:
            raise FailedError("reboot_failed", {"error": short(str(error))}) from error
        if process.returncode:
            error_text = said.decode(errors="replace")
            raise FailedError("reboot_failed", {"error": short(error_text)})
        await asyncio.sleep(REBOOT_S)
        raise FailedError("not_restarted")

    async def _self_test(self) -> Mapping[str, Value]:
        found = await asyncio.to_thread(self._examined)
        trouble = str(self._status().get("trouble") or "")
        outbox = f"{State.FAIL.value}: {trouble}" if trouble else State.OK.value
        return {name: short(text) for name, text in {**found, "outbox": outbox}.items()}

    def _examined(self) -> dict[str, str]:
        return {
            each.check: each.state.value
            if each.state is State.OK
            else f"{each.state.value}: {each.what}"
            for each in examine(self._config, without=HELD)
        }

    async def _diagnosed(self) -> bytes:
        status, metrics = self._status(), self._metrics()

        def bundle() -> bytes:
            said = {
                "status": status,
                "metrics": metrics,
                "settings": _shown(self._config),
                "self-test": self._examined(),
                "files": _files(self._config.state),
            }
            lines = logs.tail(logs.KEPT)
            while True:
                text = json.dumps({**said, "log": lines}, indent=1, default=str)
                packed = _packed(text)
                if len(packed) <= MAX_FILE or not lines:
                    return packed
                lines = lines[len(lines) // 2 + 1 :]

        return await asyncio.to_thread(bundle)

    async def _sent(self, order: Order, content: bytes) -> Mapping[str, Value]:
        if len(content) > MAX_FILE:
            raise FailedError("too_large", {"bytes": len(content)})
        await self._send(order, content)
        return {"bytes": len(content)}


def _shown(config: AgentConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if name not in _SECRETS}


def _files(state: Path) -> dict[str, int]:
    """Return the state folder's own files with their sizes; none is read."""
    found = sorted(path for path in state.iterdir() if path.is_file())
    return {path.name[:80]: path.stat().st_size for path in found[:100]}


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)
