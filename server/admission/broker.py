"""The broker's control connection: asks its dynamic security plugin, as svc-control.

What is decided here:
- One request at a time, each with a number that its answers carry: the plugin answers to all who
  listen. What is not answered in time ends the connection, since nobody knows then what was done.
- Done is what the plugin says afterwards, not what it answered to the order: each order ends in
  the same message with a question.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import aiomqtt

from server.admission import denylist
from server.admission.denylist import Command, Json
from server.clock import Clock
from server.ingest.mqtt import BrokerSettings

TIMEOUT_S: Final = 10.0
AT_ONCE = 50  # names in one message: some 20 kB, and 0.1 s of the broker at 200 entries
A_PAGE = 200
_TOPIC: Final = "$CONTROL/dynamic-security/v1"
_UPTIME: Final = "$SYS/broker/uptime"
_VERSION: Final = "$SYS/broker/version"
_Answer = TypeVar("_Answer")
_Read = TypeVar("_Read")
_UPTIME_LATE_MS = 30_000  # it is said every ten seconds, and may be on its way


class ControlError(Exception):
    """The broker cannot be reached, does not answer, or did not do what it was told."""


class Control:
    """An open control connection; `open_control` makes one."""

    def __init__(self, client: aiomqtt.Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self.version: str | None = None
        self.up_since_ms: int | None = None
        """The broker runs at least since then, in UTC; None until it has said so."""

    async def deny(self, names: Sequence[str]) -> None:
        """Put devices on the deny-list; when it returns their sessions are closed. ControlError."""
        for some in _pieces(names):
            standing = await self._ask_after(denylist.deny(some))
            if wrong := [name for name in some if standing.get(name) is not True]:
                raise ControlError(f"the broker has not put {wrong[0]} on its deny-list")

    async def admit(self, names: Sequence[str]) -> None:
        """Take devices off the deny-list. Raises ControlError."""
        for some in _pieces(names):
            standing = await self._ask_after(denylist.admit(some))
            if wrong := [name for name in some if name in standing]:
                raise ControlError(f"the broker has not taken {wrong[0]} off its deny-list")

    async def look(self, names: Sequence[str]) -> dict[str, bool]:
        """Return for each name on the list whether it stands there as it should."""
        found: dict[str, bool] = {}
        for some in _pieces(names):
            found |= await self._ask_after(denylist.look(some))
        return found

    async def listed(self) -> dict[str, bool]:
        """Return the whole deny-list, and whether each stands there as it should."""
        found: dict[str, bool] = {}
        offset, total = 0, 1
        while offset < total:
            (response,) = await self._ask([denylist.listing(offset, A_PAGE)])
            some, total = _read(denylist.page, response)
            found |= some
            offset += A_PAGE
        return found

    async def mend_role(self) -> bool:
        """Make the revoked role what it should be; False if it was."""
        (response,) = await self._ask([denylist.role("getRole")])
        stands = _read(denylist.role_stands, response)
        if stands:
            return False
        command = denylist.role("createRole" if stands is None else "modifyRole")
        (_, response) = await self._ask([command, denylist.role("getRole")])
        if not _read(denylist.role_stands, response):
            raise ControlError("the broker's revoked role is not what it should be")
        return True

    async def idle(self, wake: asyncio.Event, timeout_s: float) -> None:
        """Wait for `wake`, so long at most; ControlError as soon as the connection ends."""
        waiting = asyncio.ensure_future(wake.wait())
        reading = asyncio.ensure_future(self._read_on())
        try:
            await asyncio.wait(
                {waiting, reading}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                reading.result()
        finally:
            for task in (waiting, reading):
                task.cancel()
            await asyncio.gather(waiting, reading, return_exceptions=True)

    async def _read_on(self) -> None:
        """Take note of what the broker says of itself; never returns."""
        try:
            async for message in self._client.messages:
                self._note(message)
        except aiomqtt.MqttError as error:
            raise ControlError(str(error)) from error

    async def _ask_after(self, commands: Sequence[Command]) -> dict[str, bool]:
        return _read(denylist.clients, await self._ask(commands))

    async def _ask(self, commands: Sequence[Command]) -> list[Json]:
        """Send commands as one message; return their responses in order."""
        number = secrets.token_hex(8)
        content = json.dumps({"commands": [{**c, "correlationData": number} for c in commands]})
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._client.publish(_TOPIC, content, qos=1)
                async for message in self._client.messages:
                    responses = self._note(message)
                    if responses and responses[0].get("correlationData") == number:
                        if len(responses) == len(commands):
                            return responses
                        raise ControlError(f"{len(commands)} asked, {len(responses)} answered")
        except TimeoutError as error:
            raise ControlError(f"no answer within {TIMEOUT_S:.0f} s") from error
        except aiomqtt.MqttError as error:
            raise ControlError(str(error)) from error
        raise ControlError("the connection was closed")

    def _note(self, message: aiomqtt.Message) -> list[Json]:
        """Return the responses that a message carries; note what it says of the broker."""
        payload = message.payload if isinstance(message.payload, bytes) else b""
        topic = message.topic.value
        if topic == _VERSION:
            self.version = payload.decode(errors="replace").removeprefix("mosquitto version ")
        elif topic == _UPTIME:
            seconds = payload.partition(b" ")[0]
            if seconds.isdigit():
                began_ms = self._clock.now_ms() - int(seconds) * 1000 - _UPTIME_LATE_MS
                self.up_since_ms = max(began_ms, self.up_since_ms or began_ms)
        elif topic == f"{_TOPIC}/response":
            with suppress(ValueError, KeyError, TypeError):
                responses = json.loads(payload)["responses"]
                return [response for response in responses if isinstance(response, dict)]
        return []


@asynccontextmanager
async def open_control(broker: BrokerSettings, clock: Clock) -> AsyncIterator[Control]:
    """Connect as the identity that `broker` names. Raises ControlError."""
    try:
        tls = broker.context()
    except OSError as error:  # ssl.SSLError is one
        raise ControlError(f"{broker.certfile}: {error}") from error
    client = aiomqtt.Client(
        broker.host,
        broker.port,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=tls,
        timeout=TIMEOUT_S,
        keepalive=10,
    )
    try:
        async with client:
            await client.subscribe([(f"{_TOPIC}/response", 1), (_UPTIME, 0), (_VERSION, 0)])
            yield Control(client, clock)
    except aiomqtt.MqttError as error:
        raise ControlError(str(error)) from error


def survives_reload(version: str | None) -> bool:
    """Return whether this Mosquitto may be told to read its revocation list anew (SIGHUP).

    Before 2.0.23 and 2.1 that corrupts its sessions and admits everyone if the list is bad; one
    that does not tell its version is taken for such.
    """
    try:
        numbers = tuple(int(part) for part in (version or "").split(".")[:3])
    except ValueError:
        return False
    return numbers >= (2, 0, 23)


def _pieces(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE)]


def _read(reader: Callable[[_Answer], _Read], answer: _Answer) -> _Read:
    try:
        return reader(answer)
    except ValueError as error:
        raise ControlError(str(error)) from error
