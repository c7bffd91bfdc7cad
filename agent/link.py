"""The link: MQTT 5 over mutually authenticated TLS, one connection at a time.

Decided here:
- Client id is the device id, clean start, keepalive 45 s, QoS 1. A PUBACK is flow control and no
  promise (aiomqtt and the broker report success on 0x87 and 0x10): only `Session` believes, and
  only receipts.
- The will is a hello named 'will' without boots; its nonce is the connection's epoch << 32, the
  upper half of all nonces of that connection. So the server knows which connection dropped.
- Who stops says goodbye first (`on_leave`), a hello named `bye`, and then disconnects.
- Reconnects wait with full jitter under a ceiling of 1 to 60 s, which falls back only after 60 s
  of connection; a refusal (bad certificate, not authorised) goes straight to the highest ceiling.
- No thread and one task per agent. What is private in aiomqtt and paho is used in `_Wire` and
  `_Client` alone.
"""

import asyncio
import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import aiomqtt
import structlog
from aiomqtt.exceptions import MqttConnectError
from cryptography import x509
from paho.mqtt.client import MQTT_ERR_SUCCESS, MQTT_LOG_ERR, MQTTMessage
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.clock import BUILD_MS, Clock
from agent.outbox import Outbox
from agent.session import WINDOW, Session
from protocol.frame import Quality
from protocol.identity import DeviceId
from protocol.session import Goodbye
from protocol.topics import Leg, topic

if TYPE_CHECKING:
    from paho.mqtt.client import Client as PahoClient

NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME
TRIAL_S = 180.0  # the link's longest wait between attempts, and an attempt that takes its time
LOOKS_PER_KEEPALIVE = 9  # a ping is 5 s late at 45; the broker waits for half a keepalive more
REFUSALS = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})

log = structlog.get_logger(__name__)


class LinkError(ConnectionError):
    """The connection failed or ended; the next attempt waits its turn."""


class RefusedLinkError(LinkError):
    """The broker does not want us: trying again soon would not help."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to which broker: files of certificate chain, private key and trust bundle."""

    device: DeviceId
    broker_host: str
    broker_port: int
    chain: Path
    key: Path
    bundle: Path


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Times in seconds; the defaults are a device's."""

    keepalive_s: int = 45
    retry_min_s: float = 1.0
    retry_max_s: float = 60.0
    stable_s: float = 60.0
    connect_timeout_s: float = 10.0
    spread_s: float = 0.0  # a record waits up to this long, so that a fleet's minutes spread out


class Link:
    """Keep an outbox and the server in step: `await link.run()` until cancelled."""

    def __init__(
        self,
        identity: Identity,
        outbox: Outbox,
        *,
        clock: Clock,
        rng: random.Random,
        session: Session | None = None,
        options: LinkOptions = LinkOptions(),
    ) -> None:
        self.identity = identity
        self.address: tuple[str, int] | None = None  # instead of the identity's
        self.session = session or Session(outbox, clock=clock, rng=rng)
        self.options = options
        self.connected = False
        self.connects = 0
        self.last_error = ""
        self.on_change: Callable[[bool], None] | None = None
        self.on_refusal: Callable[[], None] | None = None
        self.on_bell: Callable[[], None] | None = None
        self.on_connect: Callable[[], None] | None = None
        self.on_leave: Callable[[], Goodbye | None] | None = None
        self._outbox = outbox
        self._clock = clock
        self._rng = rng
        self._event = asyncio.Event()
        self._context: tuple[ssl.SSLContext, bool] | None = None
        self._failures = 0
        self._refused = False
        self._trial: asyncio.Future[None] | None = None
        self._trying = asyncio.Lock()
        self._up = topic(identity.device, Leg.UP)
        self._down = topic(identity.device, Leg.DOWN)
        self._receipts = topic(identity.device, Leg.RECEIPT)
        outbox.on_put = self.wake

    def wake(self) -> None:
        """Look for something to send (after the spread)."""
        if self.options.spread_s and self.connected and self.session.answered:
            delay = self._rng.uniform(0, self.options.spread_s)
            asyncio.get_running_loop().call_later(delay, self._event.set)
        else:
            self._event.set()

    @property
    def refused(self) -> bool:
        """True if the broker's last word to us was no."""
        return self._refused

    def renew_identity(self, identity: Identity) -> None:
        """Use other files: a connection that was made with others ends, and is made anew."""
        self.identity = identity
        self._context = None
        self._failures = 0
        self._event.set()

    def reread(self) -> None:
        """Read the identity's files again for the next connection; the present one stays."""
        self._context = None

    async def try_identity(self, identity: Identity) -> None:
        """Connect with other files; return once the broker has taken us with them.

        At the first failure the files of before are in force again, and LinkError is raised.
        """
        async with self._trying:
            await self._try(identity, self.address)

    async def try_address(self, address: tuple[str, int] | None) -> None:
        """Connect to another broker, None: the identity's; return once it has taken us.

        At the first failure the one before is in force again, and LinkError is raised.
        """
        async with self._trying:
            await self._try(replace(self.identity), address)

    def go_to(self, address: tuple[str, int] | None) -> None:
        """Use another broker from now on, whether it answers or not."""
        self.address = address
        self.renew_identity(replace(self.identity))

    async def _try(self, identity: Identity, address: tuple[str, int] | None) -> None:
        before, self._trial = self.identity, asyncio.get_running_loop().create_future()
        there, self.address = self.address, address
        self.renew_identity(identity)
        try:
            async with asyncio.timeout(TRIAL_S):
                await self._trial
        except BaseException as error:
            self.address = there
            self.renew_identity(before)
            if isinstance(error, TimeoutError):
                raise LinkError("the link did not get to try another way") from error
            raise
        finally:
            self._trial = None

    async def run(self) -> None:
        """Connect, serve, wait, again; ends only by cancellation."""
        while True:
            began = self._clock.monotonic_ms()
            identity = self.identity
            try:
                await self._connection(identity)
            except (LinkError, aiomqtt.MqttError, OSError) as error:
                refused = isinstance(error, RefusedLinkError)
                if self._tries(identity):
                    self._trial_failed(error)
                else:
                    self._report(str(error), refused=refused)
            finally:
                self._set_connected(False)
            _heed_cancellation()
            if self.identity is not identity:
                continue
            lasted_s = (self._clock.monotonic_ms() - began) / 1000
            await self._clock.sleep(self._pause_s(lasted_s, refused=self._refused))

    def _tries(self, identity: Identity) -> bool:
        """True if a connection with these files is the one that `try_identity` waits for."""
        trial = self._trial
        return trial is not None and not trial.done() and identity is self.identity

    def _trial_failed(self, error: Exception) -> None:
        assert self._trial is not None
        known = error if isinstance(error, LinkError) else LinkError(str(error))
        self._trial.set_exception(known)

    async def _connection(self, identity: Identity) -> None:
        epoch = self._rng.getrandbits(32)
        will = aiomqtt.Will(
            self._up, self.session.greeting(epoch << 32, agent="will"), qos=1, retain=False
        )
        wire = _Wire(self, will=will, context=self._tls())
        try:
            await wire.open()
            self._check_dates(wire)
            await wire.subscribe([self._down, self._receipts])
            _heed_cancellation()
            self.connects += 1
            self._set_connected(True)
            self.session.connected(epoch)
            if self._tries(identity) and self._trial is not None:
                self._trial.set_result(None)
            await self._serve(wire, identity)
        except asyncio.CancelledError:
            self._leave(wire)
            raise
        finally:
            self.session.disconnected()
            await wire.close()

    def _leave(self, wire: "_Wire") -> None:
        """Say goodbye, if there is a reason and somebody to hear it; DISCONNECT goes after it."""
        goodbye = None if self.on_leave is None else self.on_leave()
        frame = None if goodbye is None else self.session.goodbye(goodbye)
        if frame is not None and not wire.dropped:
            with suppress(LinkError):
                wire.publish(self._up, frame)

    async def _serve(self, wire: "_Wire", identity: Identity) -> None:
        """Send what the session wants to send, whenever something happened or its time has come.

        Returns when another identity is to be used.
        """
        while not wire.dropped:
            if self.identity is not identity:
                return
            self._event.clear()
            for frame in self.session.next(self._clock.monotonic_ms()):
                wire.publish(self._up, frame)
            wake_ms = self.session.wake_ms()
            wait_s = None if wake_ms is None else (wake_ms - self._clock.monotonic_ms()) / 1000
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait_s is None else max(0.0, wait_s)):
                    await self._event.wait()
        raise LinkError(f"connection to the broker dropped: {wire.why}")

    def arrived(self, name: str, payload: bytes) -> None:
        """Take a message from one of our own topics."""
        if name == self._receipts:
            self.session.received(payload, self._clock.monotonic_ms())
        elif name == self._down:
            self.session.bell()
            if self.on_bell is not None:
                self.on_bell()
        self._event.set()

    def changed(self) -> None:
        """Something happened to the connection."""
        self._event.set()

    def _pause_s(self, lasted_s: float, *, refused: bool) -> float:
        options = self.options
        if lasted_s >= options.stable_s:
            self._failures = 0
        if refused:
            self._failures = 32
        ceiling = min(options.retry_max_s, options.retry_min_s * 2 ** min(self._failures, 32))
        self._failures += 1
        return self._rng.uniform(ceiling / 2 if refused else 0, ceiling)

    def _report(self, error: str, *, refused: bool) -> None:
        self._refused = refused
        if error != self.last_error:
            (log.error if refused else log.warning)("link down", error=error, refused=refused)
        self.last_error = error
        if refused and self.on_refusal is not None:
            self.on_refusal()

    def _set_connected(self, value: bool) -> None:
        if value != self.connected:
            self.connected = value
            if value:
                self.last_error, self._refused = "", False
            if self.on_change is not None:
                self.on_change(value)
            if value and self.on_connect is not None:
                self.on_connect()

    def _tls(self) -> ssl.SSLContext:
        """Return the context, made anew when the clock became known or the identity changed."""
        timeless = self._clock.offset()[0] is Quality.NONE
        if self._context is None or self._context[1] is not timeless:
            self._context = (tls_context(self.identity, timeless=timeless), timeless)
        return self._context[0]

    def _check_dates(self, wire: "_Wire") -> None:
        """Without a clock, hold the broker's certificate to the latest time known to be past."""
        if self._context is None or not self._context[1]:
            return
        certificate = x509.load_der_x509_certificate(wire.peer_certificate())
        floor_ms = max(BUILD_MS, self._outbox.last_utc_ms)
        if certificate.not_valid_after_utc.timestamp() * 1000 < floor_ms:
            raise RefusedLinkError(
                f"the broker's certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d}"
            )


def tls_context(identity: Identity, *, timeless: bool = False) -> ssl.SSLContext:
    """Return a client context: TLS 1.2 or later, our chain, their trust; dates later if asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(identity.bundle)
    context.load_cert_chain(identity.chain, identity.key)
    if timeless:
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    return context


def _heed_cancellation() -> None:
    """Raise CancelledError if we were cancelled and nobody noticed.

    aiomqtt waits with `wait_for`, which in Python 3.11 forgets a cancellation that comes in the
    moment of the answer.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _code(reason: int | ReasonCode | None) -> int:
    return int(reason.value) if isinstance(reason, ReasonCode) else int(reason or 0)


class _Client(aiomqtt.Client):
    """Looks after its keepalive a few times in it, not each second: so an idle device sleeps."""

    async def _misc_loop(self) -> None:
        while self._client.loop_misc() == MQTT_ERR_SUCCESS:  # noqa: ASYNC110
            await asyncio.sleep(self._keepalive / LOOKS_PER_KEEPALIVE)


class _Wire:
    """One connection; the only place that touches the private parts of aiomqtt and paho.

    Publishing does not wait for PUBACKs (the session's window bounds what is in flight), and what
    arrives is handed on from paho's callback, without a task per message.
    """

    def __init__(self, link: Link, *, will: aiomqtt.Will, context: ssl.SSLContext) -> None:
        options = link.options
        self._link = link
        host, port = link.address or (link.identity.broker_host, link.identity.broker_port)
        self._client = _Client(
            host,
            port,
            identifier=link.identity.device,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=options.keepalive_s,
            timeout=options.connect_timeout_s,
            will=will,
            tls_context=context,
            max_inflight_messages=WINDOW + 4,
            max_queued_outgoing_messages=4 * WINDOW,
        )
        self._paho.connect_timeout = options.connect_timeout_s / 2
        self._paho.on_message = self._on_message
        self._paho.on_log = self._on_log
        self._alert = False
        self._loop = asyncio.get_running_loop()
        self._open = False

    @property
    def _paho(self) -> "PahoClient":
        return self._client._client

    @property
    def dropped(self) -> bool:
        """True once the connection is gone."""
        return self._client._disconnected.done()

    @property
    def why(self) -> str:
        """What aiomqtt knows of the drop."""
        gone = self._client._disconnected
        return str(gone.exception() or "closed") if gone.done() else ""

    def peer_certificate(self) -> bytes:
        """Return the broker's certificate, DER."""
        sock = self._paho.socket()
        data = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        if data is None:
            raise LinkError("the broker showed no certificate")
        return data

    async def open(self) -> None:
        """Connect; RefusedLinkError if the broker or TLS says no. Cancellation closes first."""
        entering = asyncio.ensure_future(self._client.__aenter__())
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            await asyncio.wait({entering})  # at most twice the connect timeout
            self._open = entering.exception() is None
            await self.close()
            raise
        except MqttConnectError as error:
            code = _code(error.rc)
            kind = RefusedLinkError if code in REFUSALS else LinkError
            raise kind(f"the broker refused the connection: {error}") from error
        except aiomqtt.MqttError as error:
            self._paho.disconnect()
            refused = self._alert or isinstance(error.__context__, ssl.SSLError)
            kind = RefusedLinkError if refused else LinkError
            raise kind(f"no connection to the broker: {error}") from error
        self._open = True
        self._client._disconnected.add_done_callback(lambda _: self._link.changed())

    async def subscribe(self, topics: list[str]) -> None:
        """Subscribe; RefusedLinkError if the broker grants less than all."""
        wanted = [(name, SubscribeOptions(qos=1)) for name in topics]
        codes = await self._client.subscribe(wanted)
        if any(_code(code) >= 0x80 for code in codes):
            raise RefusedLinkError("the broker does not let us read our own topics")

    def publish(self, name: str, payload: bytes) -> None:
        """Hand a QoS 1 message to the connection."""
        info = self._paho.publish(name, payload, qos=1)
        if info.rc != MQTT_ERR_SUCCESS:
            raise LinkError(f"can't publish: {info.rc!r}")

    async def close(self) -> None:
        """Say goodbye if there is someone to hear it (then the will stays unsent)."""
        if not self._open:
            return
        self._open = False
        with suppress(aiomqtt.MqttError, OSError):
            await self._client.__aexit__(None, None, None)
        gone = self._client._disconnected
        if gone.done() and not gone.cancelled():
            gone.exception()  # seen

    def _on_log(self, client: "PahoClient", userdata: object, level: int, text: str) -> None:
        """Note that the broker has refused us by an alert: with TLS 1.3 only after our part."""
        del client, userdata
        if level == MQTT_LOG_ERR and "_ALERT_" in text:
            self._alert = True
            self._loop.call_soon_threadsafe(self._answered_by_alert)  # connecting has its thread

    def _answered_by_alert(self) -> None:
        """End the wait for an answer that cannot come any more."""
        answer = self._client._connected
        if not answer.done():
            answer.set_exception(aiomqtt.MqttError("refused by a TLS alert"))
            answer.exception()  # seen, though nobody waits yet where connecting itself fails

    def _on_message(self, client: "PahoClient", userdata: object, message: MQTTMessage) -> None:
        del client, userdata
        try:
            self._link.arrived(message.topic, bytes(message.payload))
        except Exception:  # paho would swallow it and drop the connection
            log.exception("a message could not be handled", topic=message.topic)
