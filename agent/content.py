"""What the content service gives this device: asked for over HTTPS, and held to its signature.

Decided here:
- It is asked for at each connection, when the bell rings, and once a day; what failed is tried
  again after a minute, then ever later, at most a day. A fleet that comes back asks spread out.
- What is refused changes nothing: the last that was good stays.

A signature is held to these rules, in this order; the same numbers stand in the code:

1. The chain's first certificate has one name: the content service's, or that of the service whose
   word it is. Its authority signed it, and a root that we hold signed the authority.
2. None of the three has ended. Only when it comes: once taken it holds, whatever becomes of the
   certificate.
3. That certificate's key signed the message.
"""

import asyncio
import http.client
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent import identity
from agent.clock import BUILD_MS, Clock
from agent.enrol import Answered, EnrolError, exchange, refused
from agent.link import tls_context
from agent.renewal import DAY_MS, backoff_ms, signed
from protocol.content import SIGNER, ContentError, Fault
from protocol.envelope import Sealed
from protocol.frame import Quality

CONNECT_SPREAD = 6  # times the spread of a record: ten thousand kiosks come back at once

log = structlog.get_logger(__name__)


def vouched(
    envelope: Sealed,
    *,
    roots: Sequence[x509.Certificate],
    now: datetime | None,
    signer: str = SIGNER,
) -> None:
    """Hold an envelope to the module's rules; `now` None: without rule 2. ContentError."""
    try:
        chain = x509.load_pem_x509_certificates(envelope.chain.encode())
    except ValueError as error:
        raise _untrusted("its chain can't be read") from error
    if _names(chain[0]) != [signer]:  # 1
        raise _untrusted(f"it is not {signer.rpartition(':')[2]}'s")
    authority = next((c for c in chain[1:] if signed(chain[0], by=c)), None)
    root = authority and next((r for r in roots if signed(authority, by=r)), None)
    if authority is None or root is None:
        raise _untrusted("its signer hangs from no root that we hold")
    for one in (chain[0], authority, root) if now is not None else ():  # 2
        assert now is not None
        if one.not_valid_after_utc <= now:
            raise _untrusted(f"a certificate of its signer ended on {one.not_valid_after_utc:%F}")
    key = chain[0].public_key()
    try:  # 3
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise _untrusted("its signer's key is of another kind")
        key.verify(envelope.signature, envelope.message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _untrusted("its signature is not its signer's") from error


def _untrusted(message: str) -> ContentError:
    return ContentError(Fault.UNTRUSTED, "chain", message)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(name.value) for name in names]


@dataclass(frozen=True, slots=True)
class Terms:
    """Whom a device asks, where it keeps what it hears, and by which clock and dice."""

    state: Path
    server: tuple[str, int] | None
    clock: Clock
    rng: random.Random
    last_utc_ms: Callable[[], int]
    spread_s: float = 10.0


class Asking(ABC):
    """Asks for one kind of content, and keeps it in its state: `await run()` until cancelled."""

    what = "content"

    def __init__(self, terms: Terms) -> None:
        self._state = terms.state
        self._server = terms.server
        self._clock = terms.clock
        self._rng = terms.rng
        self._last_utc_ms = terms.last_utc_ms
        self._spread_s = terms.spread_s
        self._wake = asyncio.Event()
        self._due_ms = terms.clock.monotonic_ms()
        self._failures = 0
        self.trouble = ""
        self.refused = 0
        self.fetched = 0

    def ring(self) -> None:
        """The bell rang: ask soon."""
        self._soon(self._spread_s)

    def connected(self) -> None:
        """The broker has taken us: a bell may have rung while we were away."""
        self._soon(self._spread_s * CONNECT_SPREAD)

    def spread(self, seconds: float) -> None:
        """Spread over another time from now on."""
        self._spread_s = seconds

    def _soon(self, spread_s: float) -> None:
        self._in(round(self._rng.uniform(0, spread_s) * 1000))
        self._wake.set()

    async def run(self) -> None:
        """Ask whenever it is due; ends only by cancellation."""
        if self._server is None:
            log.warning("nothing can be fetched: set `server` in the settings", what=self.what)
            await asyncio.get_running_loop().create_future()
        while True:
            wait_ms = self._due_ms - self._clock.monotonic_ms()
            if wait_ms > 0:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_ms / 1000):
                        await self._wake.wait()
                continue
            await self.step()

    async def step(self) -> None:
        """Ask once, and note how it went; who rings meanwhile is not forgotten."""
        self._due_ms = self._clock.monotonic_ms() + 2 * DAY_MS
        try:
            changed = await self._fetch()
        except ContentError as error:
            self.refused += 1
            self._failed(f"{error.fault}: {error}")
            log.error("refused", what=self.what, fault=error.fault.value, error=str(error))
        except (EnrolError, OSError, http.client.HTTPException, ValueError) as error:
            self._failed(str(error) or repr(error))
            log.warning("not fetched", what=self.what, error=self.trouble)
        else:
            self._failures, self.trouble = 0, ""
            self._in(round(DAY_MS * (0.75 + self._rng.random() / 2)))
            if changed:
                self.fetched += 1
                log.info("taken", what=self.what)

    def _failed(self, why: str) -> None:
        self.trouble = why
        self._in(backoff_ms(self._failures, self._rng.random()))
        self._failures += 1

    def _in(self, wait_ms: int) -> None:
        self._due_ms = min(self._due_ms, self._clock.monotonic_ms() + wait_ms)

    @abstractmethod
    async def _fetch(self) -> bool:
        """Ask; True if something else was taken."""

    async def _asked(
        self, method: str, path: str, *, body: str | bytes | None = None, etag: str = ""
    ) -> Answered:
        """Return the server's answer, 200 or 304; EnrolError, OSError, HTTPException."""
        assert self._server is not None
        host, port = self._server
        timeless = self._clock.offset()[0] is Quality.NONE
        got = await asyncio.to_thread(
            exchange,
            host,
            port,
            tls_context(identity.for_link(self._state), timeless=timeless),
            method=method,
            path=path,
            body=body,
            etag=etag,
            check=self._check_server,
        )
        if got.status not in (200, 304):
            raise refused(got)
        return got

    def _device(self) -> str:
        return identity.read(self._state).device

    def _roots(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(identity.files(self._state).bundle.read_bytes())

    def _utc(self) -> datetime:
        """Return the time; without a clock, the latest that is known to be past."""
        quality, offset_ms = self._clock.offset()
        if quality is Quality.NONE:
            return datetime.fromtimestamp(max(BUILD_MS, self._last_utc_ms()) / 1000, UTC)
        return datetime.fromtimestamp((self._clock.monotonic_ms() + offset_ms) / 1000, UTC)

    def _check_server(self, der: bytes) -> None:
        """Without a clock, hold the server's certificate to the latest time known to be past."""
        if x509.load_der_x509_certificate(der).not_valid_after_utc < self._utc():
            raise ValueError("the server's certificate has ended")
