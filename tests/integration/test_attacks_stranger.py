"""What somebody does who has nothing but our addresses: at the broker, the pages, the listeners."""

from __future__ import annotations

import asyncio
import gzip
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from ops.services.stack import Stack
from protocol.topics import Leg, topic
from server import app
from server.provisioning.listener import listener_tls
from server.web.deadline import LIMIT_S, SLOWEST, Later, listening
from tests.integration.people_world import People
from tests.integration.test_broker_mtls import CONNECT, A, B, Fleet, until

pytestmark = pytest.mark.services
SOON_S = 0.3  # only where nothing but the end is waited for


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Fleet:
    return Fleet(stack, tmp_path)


async def closed(
    port: int,
    *packets: bytes,
    tls: ssl.SSLContext | None = None,
    drip: Callable[[], Awaitable[None]] | None = None,
) -> bytes:
    """Send packets and return all that is said until the other side closes; TimeoutError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                for packet in packets:
                    writer.write(packet)
                    await writer.drain()
                    if drip is not None:
                        await drip()
            try:
                return await reader.read()
            except ConnectionError:
                return b""
    finally:
        writer.transport.abort()


# -- at the broker -------------------------------------------------------------------------------

PING = b"\xc0\x00"
GARBAGE = {
    "garbage": (secrets.token_bytes(512),),
    "http": (b"GET / HTTP/1.1\r\n\r\n",),
    "publish first": (b"\x30\x05\x00\x01a\x00x",),
    "subscribe first": (b"\x82\x07\x00\x01\x00\x00\x01#\x01",),
    "ping first": (PING,),
    "two connects": (CONNECT, CONNECT),
    "endless length": (b"\x10\xff\xff\xff\xff\xff",),
    "empty connect": (b"\x10\x00",),
    "no such protocol": (bytes.fromhex("100e 0004 4d515458 05 02 003c 00 0001 78"),),
    "reserved packet": (CONNECT, b"\x00\x00"),
    "a server's packet": (CONNECT, b"\x20\x03\x00\x00\x00"),
    "bad topic": (CONNECT, b"\x30\x08\x00\x05v1/+/\x00x"),
    "cut utf-8": (CONNECT, b"\x30\x07\x00\x03v\xff\xff\x00x"),
}


@pytest.mark.parametrize("packets", GARBAGE.values(), ids=GARBAGE)
async def test_x14_garbage_ends_its_own_connection_and_nobody_elses(
    fleet: Fleet, packets: tuple[bytes, ...]
) -> None:
    async with fleet.service("svc-ingest") as ingest, fleet.device(B) as other:
        await ingest.subscribe("v1/+/+/up", qos=1)
        await closed(fleet.device_port, *packets, tls=fleet.certificate(A))
        await closed(fleet.device_port, secrets.token_bytes(512))  # and before any handshake
        await other.publish(topic(B, Leg.UP), b"end", qos=1)
        assert await until(ingest, b"end") == [(topic(B, Leg.UP), b"end")]
        async with fleet.device(A) as back:
            await back.publish(topic(A, Leg.UP), b"back", qos=1)
            assert await until(ingest, b"back") == [(topic(A, Leg.UP), b"back")]


async def test_x15_connections_that_only_begin_keep_no_device_out(fleet: Fleet) -> None:
    """Some hundreds do not; without end they would: see the threat model."""
    half = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", fleet.device_port) for _ in range(300))
    )
    try:
        async with fleet.service("svc-ingest") as ingest, fleet.device(A) as device:
            await ingest.subscribe("v1/+/+/up", qos=1)
            await device.publish(topic(A, Leg.UP), b"here", qos=1)
            assert await until(ingest, b"here") == [(topic(A, Leg.UP), b"here")]
    finally:
        for _, writer in half:
            writer.transport.abort()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_x27_old_versions_of_tls_are_refused(fleet: Fleet) -> None:
    for port, newest in (
        (fleet.device_port, ssl.TLSVersion.TLSv1_1),
        (fleet.service_port, ssl.TLSVersion.TLSv1_2),
    ):
        device = port == fleet.device_port
        tls = fleet.certificate(A) if device else fleet.identity("svc-ingest")
        tls.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        tls.maximum_version = newest
        tls.set_ciphers("ALL:@SECLEVEL=0")  # else it is our side that refuses
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=tls)


# -- slow and huge requests ----------------------------------------------------------------------


class Hand:
    """A clock that the test moves: what is due is called, however slow the machine is."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[tuple[asyncio.TimerHandle, Callable[..., object], tuple[object, ...]]]
        self._timers = []
        self._set = asyncio.Event()

    def later(
        self, delay_s: float, act: Callable[..., object], *told: object
    ) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        timer = asyncio.TimerHandle(self._now_s + delay_s, act, told, loop)
        self._timers.append((timer, act, told))
        self._set.set()
        return timer

    async def move(self, seconds: float, *, timers: int) -> None:
        """Let time pass once the server has set so many timers in all."""
        while len(self._timers) < timers:
            self._set.clear()
            await self._set.wait()
        self._now_s += seconds
        for timer, act, told in self._timers:
            if timer.when() <= self._now_s and not timer.cancelled():
                timer.cancel()
                act(*told)


@asynccontextmanager
async def answering(
    *, tls: ssl.SSLContext | None = None, limit_s: float = LIMIT_S, later: Later | None = None
) -> AsyncIterator[tuple[int, list[int]]]:
    """A listener as the server's; the sizes of the bodies it was given."""
    sizes: list[int] = []

    async def take(request: web.Request) -> web.Response:
        sizes.append(len(await request.read()))
        return web.Response(text="taken")

    served = web.Application(client_max_size=16 * 1024)
    served.router.add_route("*", "/", take)
    async with listening(
        served, host="127.0.0.1", port=0, tls=tls, shutdown_s=1, limit_s=limit_s, later=later
    ) as port:
        yield port, sizes


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
SLOW = {
    "says nothing": (),
    "half a line": (b"GET / HT",),
    "half a head": (HEAD,),
    "half a body": (HEAD + b"\r\nab",),
    "half a chunk": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",),
}


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("packets", SLOW.values(), ids=SLOW)
async def test_x50_a_request_that_does_not_come_ends_its_connection(
    stack: Stack, packets: tuple[bytes, ...], secure: bool
) -> None:
    served = listener_tls(stack.endpoints.pki) if secure else None
    trusting = ssl.create_default_context(cafile=stack.endpoints.pki / "bundle.pem")
    async with answering(tls=served, limit_s=SOON_S) as (port, sizes):
        said = await closed(port, *packets, tls=trusting if secure else None)
        assert b"taken" not in said
        assert sizes == []


async def test_x50_a_head_that_drips_is_not_waited_for(stack: Stack) -> None:
    drops = [b"GET / HTTP/1.1\r\n", *(b"X-%d: x\r\n" % n for n in range(12)), b"\r\n"]
    hand = Hand()

    async def drip() -> None:
        await hand.move(LIMIT_S / 6, timers=1)

    async with answering(later=hand.later) as (port, sizes):
        assert b"taken" not in await closed(port, *drops, drip=drip)
        assert sizes == []


async def test_x50_a_handshake_that_does_not_come_is_not_waited_for(stack: Stack) -> None:
    async with answering(tls=listener_tls(stack.endpoints.pki), limit_s=SOON_S) as (port, _):
        assert await closed(port) == b""


async def test_x50_who_asks_in_time_is_answered_as_often_as_they_like() -> None:
    request, hand = HEAD + b"\r\nabcde", Hand()
    async with answering(later=hand.later) as (port, sizes):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(8):
            writer.write(request)
            assert await reader.readuntil(b"taken")
            await hand.move(LIMIT_S / 4, timers=1)
        writer.close()
    assert sizes == [5] * 8


async def test_x50_a_long_body_has_the_time_that_a_weak_signal_needs() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 8000\r\n\r\n"
    allowed_s = LIMIT_S + 8000 / SLOWEST
    for drop, drops, taken in ((800, 10, True), (8, 20, False)):  # but not for ever
        hand = Hand()
        drip_s = (allowed_s + (-1 if taken else 1)) / (drops + 1)

        async def drip(hand: Hand = hand, drip_s: float = drip_s) -> None:
            await hand.move(drip_s, timers=2)  # the head's, and the body's

        async with answering(later=hand.later) as (port, sizes):
            said = await closed(port, head, *[bytes(drop)] * drops, drip=drip)
            assert (b"taken" in said) is taken
            assert sizes == ([8000] if taken else [])


@pytest.mark.parametrize(
    ("packet", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9_000 + b"\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 500 + b"\r\n", b"400"),
        (HEAD + b"Content-Length: 6\r\n\r\nabcde", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (HEAD.replace(b"Length: 5", b"Length: +5") + b"\r\nabcde", b"400"),
    ],
    ids=["header", "path", "headers", "two lengths", "length and chunks", "signed length"],
)
async def test_x50_huge_and_ambiguous_requests_are_refused(packet: bytes, status: bytes) -> None:
    async with answering() as (port, sizes):
        said = await closed(
            port, packet + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert said.split()[1] == status
        assert b"taken" not in said
        assert sizes == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_x50_a_body_that_is_too_long_is_not_read(chunked: bool) -> None:
    head, body = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", b"x" * 20_000
    head += b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 20000\r\n\r\n"
    if chunked:
        body = b"4e20\r\n" + body + b"\r\n0\r\n\r\n"
    async with answering() as (port, sizes):
        assert (await closed(port, head, body)).split()[1] == b"413"
        assert sizes == []


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "GZIP, gzip"])
async def test_x50_a_compressed_body_is_refused_unread(coding: str) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    head = (
        f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: {coding}\r\n"
        f"Content-Length: {len(bomb)}\r\n\r\n"
    )
    async with answering() as (port, sizes):
        assert b" 415 " in await closed(port, head.encode(), bomb)
        assert sizes == []


async def test_x50_the_server_begins_both_its_listeners_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    @asynccontextmanager
    async def noted(_: web.Application, *, port: int, **__: object) -> AsyncIterator[int]:
        asked.append(port)
        yield port

    monkeypatch.setattr(app, "listening", noted)
    async with AsyncExitStack() as stack:
        for port in (1, 2):
            await app._start(stack, web.Application(), host="", port=port, tls=None)
    assert asked == [1, 2]


MALFORMED = {
    "no utf-8, and a nul": (b"GET /%ff%00 HTTP/1.1", b"Host: x"),
    "a nul in the query": (b"GET /?a=%00 HTTP/1.1", b"Host: x"),
    "a nul as it is": (b"GET /\0 HTTP/1.1", b"Host: x"),
    "no path": (b"GET x HTTP/1.1", b"Host: x"),
    "absolute, no host": (b"GET http:///x HTTP/1.1", b"Host: x"),
    "absolute, half a host": (b"GET http://[/x HTTP/1.1", b"Host: x"),
    "absolute, no such port": (b"GET http://x:99999/ HTTP/1.1", b"Host: x"),
    "connect": (b"CONNECT [ HTTP/1.1", b"Host: x"),
    "no such version": (b"GET / HTTP/9.9", b"Host: x"),
    "no host": (b"GET / HTTP/1.1", b"X: x"),
    "two hosts": (b"GET / HTTP/1.1", b"Host: x\r\nHost: y"),
    "half a host": (b"GET / HTTP/1.1", b"Host: ["),
    "a host of bytes": (b"GET / HTTP/1.1", b"Host: \xff\xfe"),
    "a host with a path": (b"GET / HTTP/1.1", b"Host: x/y?z@"),
    "a port of letters": (b"GET / HTTP/1.1", b"Host: x:y"),
    "no such port": (b"GET / HTTP/1.1", b"Host: x:99999"),
    "no such length": (b"POST / HTTP/1.1", b"Host: x\r\nContent-Length: x"),
    "a key of bytes": (b"GET / HTTP/1.1", b"Host: x\r\nAuthorization: Bearer \xff"),
    "a field of bytes": (b"GET / HTTP/1.1", b"Host: x\r\nX-CSRF-Token: \xff"),
}


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(("line", "header"), MALFORMED.values(), ids=MALFORMED)
async def test_x50_a_malformed_request_is_refused_and_fills_no_log(
    stack: Stack, caplog: pytest.LogCaptureFixture, line: bytes, header: bytes, secure: bool
) -> None:
    served = listener_tls(stack.endpoints.pki) if secure else None
    trusting = ssl.create_default_context(cafile=stack.endpoints.pki / "bundle.pem")
    request = line + b"\r\n" + header + b"\r\nConnection: close\r\n\r\n"
    async with answering(tls=served) as (port, sizes):
        said = await closed(port, request, tls=trusting if secure else None)
    assert b" 400 " in said.splitlines()[0]
    assert sizes == []
    assert caplog.records == []


async def test_x50_a_fault_of_ours_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(_: web.Request) -> web.Response:
        raise LookupError("ours")

    served = web.Application()
    served.router.add_get("/", fails)
    async with listening(served, host="127.0.0.1", port=0, tls=None, shutdown_s=1) as port:
        said = await closed(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b" 500 " in said.splitlines()[0]
    assert [type(r.exc_info[1]) for r in caplog.records if r.exc_info] == [LookupError]


_IN_NO_WAY = (
    b'--x\r\nContent-Disposition: form-data; name="email"\r\n'
    b"Content-Transfer-Encoding: nope\r\n\r\nx\r\n--x--\r\n"
)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded; charset=nope", b"email=x"),
        ("application/x-www-form-urlencoded", b"email=\xff"),
        ("application/x-www-form-urlencoded", b"email=%00"),
        ("multipart/form-data", b"email=x"),
        ("multipart/form-data; boundary=x", _IN_NO_WAY),
        ("application/x-www-form-urlencoded; charset=utf-7", b"email=+2AA-"),
    ],
)
async def test_x50_a_form_that_is_none_is_refused(people: People, kind: str, body: bytes) -> None:
    headers = {"Content-Type": kind, "Sec-Fetch-Site": "same-origin"}
    async with people.browser().post("/signin", data=body, headers=headers) as answer:
        assert answer.status == 400


async def test_x50_a_page_at_no_address_is_led_to_the_sign_in(people: People) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://["}
    async with people.browser().get("/", headers=headers) as answer:
        assert (answer.status, answer.headers["HX-Redirect"]) == (401, "/signin?to=%2F")


async def test_x47_the_listeners_keep_no_log_of_addresses(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with answering() as (port, _):
        asked = b"GET /?key=vk_hush HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert b"taken" in await closed(port, asked)
    assert "hush" not in caplog.text


# -- another site's page -------------------------------------------------------------------------


async def test_x49_another_sites_page_reads_no_live_page(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    headers = {"Accept": "text/event-stream", "Origin": "https://evil.example"}
    for site in ("cross-site", "same-site"):
        async with browser.get("/events", headers={**headers, "Sec-Fetch-Site": site}) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert answer.status == 401
    cookies = [c for c in browser.cookie_jar if c.key == "vestibule"]
    assert [c["samesite"] for c in cookies] == ["Lax"]
    for path in ("/events", "/v1/sites", "/account"):
        async with browser.options(
            path, headers={**headers, "Access-Control-Request-Method": "GET"}
        ) as preflight:
            assert "Access-Control-Allow-Origin" not in preflight.headers
