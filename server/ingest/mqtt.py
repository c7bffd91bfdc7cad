"""The broker's connection: the only module that touches aiomqtt's and paho's private parts.

What is decided here, and kept by contract tests against the real broker:
- Nothing is acknowledged to the broker before `acknowledge`; the library's own acknowledgement,
  sent before anyone has stored anything, is off before the connection is made.
- The receive maximum is the whole of our flow control: at most so many messages wait here.
- A `Link` is one connection. It is never reused, so an acknowledgement that comes too late can
  only fall on a dead link, not on another message that got the same packet id.
- paho connects, subscribes and keeps alive. What it does a byte and a lock at a time, reading
  publishes and writing acknowledgements, is done here in whole buffers.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

Inbound = tuple[bytes, bytes, int]
"""A message as it came: topic, payload and packet id (0: QoS 0, needs no acknowledgement)."""

MAX_PACKET = 131_072  # the broker forwards at most 66,560 bytes
_RECORD = 16_384  # the most that one TLS record holds
_READS_A_TURN = 32  # half a megabyte, then others have their turn in the event loop
_PUBLISH, _PUBACK = 0x30, 0x40
_KEEPALIVE_S = 20


class LinkError(Exception):
    """The broker cannot be reached, refuses us, or the connection is lost."""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the service listener is, and who we are on it."""

    host: str
    port: int
    cafile: Path
    certfile: Path
    keyfile: Path
    session: str = "ingest-0"
    receive_maximum: int = 2000

    def context(self) -> ssl.SSLContext:
        """Return the TLS context: our certificate, and only the given authority trusted."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.cafile)
        context.load_cert_chain(self.certfile, self.keyfile)
        return context


def split(data: bytes, into: list[Inbound], *, other: list[tuple[int, bytes]]) -> tuple[int, int]:
    """Take whole packets off `data`: publishes into `into`, all else into `other`.

    Returns how many bytes they took, and how many retained messages stand among `into` as
    messages with an empty topic. Raises LinkError on what no broker sends.
    """
    at, end, retained = 0, len(data), 0
    while end - at >= 2:
        command, length, start = data[at], data[at + 1], at + 2
        if length & 0x80:
            try:
                length, start = _varint(data, at + 1)
            except IndexError:
                break
        stop = start + length
        if length > MAX_PACKET:
            raise LinkError(f"a packet of {length} bytes")
        if stop > end:
            break
        at = stop
        if command & 0xF0 != _PUBLISH:
            other.append((command, data[start:stop]))
            continue
        body = start + 2 + (data[start] << 8 | data[start + 1])
        topic = data[start + 2 : body]
        packet_id = 0
        if command & 0x06:
            packet_id = data[body] << 8 | data[body + 1]
            body += 2
        properties, body = data[body], body + 1
        if properties & 0x80:
            properties, body = _varint(data, body - 1)
        if body + properties > stop:
            raise LinkError("a publish that runs past its end")
        if command & 0x01:
            retained += 1
            into.append((b"", b"", packet_id))
            continue
        into.append((topic, data[body + properties : stop], packet_id))
    return at, retained


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 28, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise LinkError("a length of more than four bytes")


def publish_head(topic: str, payload_bytes: int) -> bytes:
    """Return all of a QoS 0 publish of `payload_bytes` that stands before its payload."""
    name = topic.encode()
    length = 2 + len(name) + 1 + payload_bytes
    if length < 128:
        size = bytes((length,))
    elif length < 16_384:
        size = bytes((length & 127 | 128, length >> 7))
    else:
        size = bytes((length & 127 | 128, length >> 7 & 127 | 128, length >> 14))
    return bytes((_PUBLISH,)) + size + len(name).to_bytes(2, "big") + name + b"\0"


class Link:
    """One connection to the broker; messages go to `on_messages` on the event loop."""

    def __init__(
        self, broker: BrokerSettings, on_messages: Callable[[list[Inbound]], None]
    ) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0xFFFFFFFF
        properties.ReceiveMaximum = broker.receive_maximum
        self._client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=broker.session,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=False,
            properties=properties,
            tls_context=broker.context(),
            keepalive=_KEEPALIVE_S,
        )
        self._paho = self._client._client
        self._paho.manual_ack_set(True)  # before connecting, or messages are lost
        self._paho.on_socket_open = self._opened  # type: ignore[assignment]
        self._on_messages = on_messages
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._ended = False
        self.session_present = False
        """Whether the broker still had our session: one that was started again has not."""
        connected: Callable[..., None] = self._client._on_connect

        def on_connect(client: object, data: object, flags: object, *rest: object) -> None:
            self.session_present = bool(getattr(flags, "session_present", False))
            connected(client, data, flags, *rest)

        self._paho.on_connect = on_connect

    @property
    def alive(self) -> bool:
        """True until the connection is known to be lost or closed."""
        return not self._ended and not self._client._disconnected.done()

    async def __aenter__(self) -> "Link":
        try:
            await self._client.__aenter__()
        except aiomqtt.MqttError as error:
            self._ended = True
            self._drop()
            raise LinkError(str(error)) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        try:
            await self._client.__aexit__(kind, error, traceback)
        except aiomqtt.MqttError:
            pass  # it would not say goodbye; the socket is closed below
        finally:
            self._drop()

    async def subscribe(self, topic: str) -> None:
        """Subscribe at QoS 1; LinkError if the broker does not grant it."""
        try:
            codes = await self._client.subscribe(topic, qos=1)
        except aiomqtt.MqttError as error:
            raise LinkError(str(error)) from error
        if any(getattr(code, "is_failure", False) for code in codes):
            raise LinkError(f"subscription to {topic} refused: {codes}")

    async def lost(self) -> None:
        """Return never; raise LinkError when the connection ends."""
        try:
            await asyncio.shield(self._client._disconnected)
        except (aiomqtt.MqttError, OSError, LinkError) as error:
            raise LinkError(str(error)) from error
        raise LinkError("disconnected")

    def acknowledge(self, packet_ids: Iterable[int]) -> None:
        """Acknowledge messages of this link in the order given; a no-op once it is lost."""
        if not self.alive:
            return
        self._write(b"".join(b"\x40\x02" + i.to_bytes(2, "big") for i in packet_ids if i))

    def publish(self, packets: Iterable[bytes]) -> None:
        """Send QoS 0 publishes, each whole as `publish_head` begins it; a no-op once lost."""
        if self.alive:
            self._write(b"".join(packets))

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), _RECORD):
            self._paho._packet_queue(_PUBACK, data[at : at + _RECORD], 0, 0)

    def _drop(self) -> None:
        self._paho._sock_close()
        ended = self._client._disconnected
        if ended.done() and not ended.cancelled():
            ended.exception()  # seen, whoever was waiting for it

    def _opened(self, _client: object, _userdata: object, sock: ssl.SSLSocket) -> None:
        """Take the place of aiomqtt's reader; called on the connecting thread."""
        number = sock.fileno()

        def on_loop() -> None:
            if self._paho._sock is sock:
                self._loop.add_reader(number, self._readable, sock)
                self._client._misc_task = self._loop.create_task(self._client._misc_loop())

        self._loop.call_soon_threadsafe(on_loop)

    def _readable(self, sock: ssl.SSLSocket) -> None:
        if self._paho._sock is not sock:
            return
        chunks = [self._rest]
        try:
            for _ in range(_READS_A_TURN):
                chunk = sock.recv(_RECORD)
                if not chunk:
                    self._fail("the broker closed the connection")
                    return
                chunks.append(chunk)
                if not sock.pending() and len(chunk) < _RECORD:
                    break
            else:  # decrypted bytes may wait where the selector does not see them
                self._loop.call_soon(self._readable, sock)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            pass
        except OSError as error:
            self._fail(str(error))
            return
        if len(chunks) > 1:
            self._received(b"".join(chunks))

    def _received(self, data: bytes) -> None:
        self._paho._last_bytes_received = time.monotonic()
        messages: list[Inbound] = []
        others: list[tuple[int, bytes]] = []
        try:
            taken, _retained = split(data, messages, other=others)
        except (LinkError, IndexError) as error:
            self._fail(f"not MQTT: {error}")
            return
        self._rest = data[taken:]
        for command, body in others:
            self._hand_to_paho(command, body)
        if messages:
            self._on_messages(messages)

    def _hand_to_paho(self, command: int, body: bytes) -> None:
        self._paho._in_packet = {
            "command": command,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        code = self._paho._packet_handle()
        if code > 0:
            self._paho._loop_rc_handle(code)

    def _fail(self, why: str) -> None:
        self._ended = True
        self._paho._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        if not self._client._disconnected.done():
            self._client._disconnected.set_exception(LinkError(why))
