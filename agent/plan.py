"""What this kiosk is to show: fetched, checked, kept, and shown for ever where no server answers.

Decided here:
- It is asked for at each connection, when the bell rings, and once a day; what failed is tried
  again after a minute, then ever later, at most a day. A fleet that comes back asks spread out.
- What was taken lies in `plan.json` as it came; the one before in `plan.before.json`, since a press
  may still come for what was on the screen a moment ago. Both are checked again at each start.
- A plan that is refused changes nothing: the last good one stays.

A plan is checked in this order; the same numbers stand in the code:

1. It is an envelope, within its caps.
2. The chain's first certificate has one name: the content service's. Its authority signed it, and a
   root that we hold signed the authority.
3. None of the three has ended. Only when it comes: once taken it holds, whatever becomes of the
   certificate.
4. That certificate's key signed the plan.
5. The plan is ours, and brings each questionnaire that it names, whole.
6. Its time zone is known here, if anything in it goes by the time.
"""

import asyncio
import http.client
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent import identity
from agent.clock import BUILD_MS, Clock
from agent.enrol import EnrolError, exchange, refused
from agent.kiosk import BUILT_IN
from agent.link import tls_context
from agent.renewal import DAY_MS, backoff_ms, signed
from protocol.frame import Quality
from protocol.questionnaire import (
    SIGNED,
    SIGNER,
    Fault,
    Plan,
    Questionnaire,
    QuestionnaireError,
    opened,
    read_envelope,
)

CONNECT_SPREAD = 6  # times the spread of a record: ten thousand kiosks come back at once

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan that has stood the check, with its questionnaires by digest."""

    content: bytes
    plan: Plan
    questionnaires: Mapping[str, Questionnaire]


@dataclass(frozen=True, slots=True)
class OnScreen:
    """A questionnaire, and the hash that its presses bear."""

    hash: bytes
    questionnaire: Questionnaire


def checked(
    content: bytes, *, device: str, roots: Sequence[x509.Certificate], now: datetime | None
) -> Kept:
    """Hold an envelope to the module's rules; `now` None: without rule 3. QuestionnaireError."""
    envelope = read_envelope(content)  # 1
    try:
        chain = x509.load_pem_x509_certificates(envelope.chain.encode())
    except ValueError as error:
        raise _untrusted("its chain can't be read") from error
    if _names(chain[0]) != [SIGNER]:  # 2
        raise _untrusted("it is not the content service's")
    authority = next((c for c in chain[1:] if signed(chain[0], by=c)), None)
    root = authority and next((r for r in roots if signed(authority, by=r)), None)
    if authority is None or root is None:
        raise _untrusted("its signer hangs from no root that we hold")
    for one in (chain[0], authority, root) if now is not None else ():  # 3
        assert now is not None
        if one.not_valid_after_utc <= now:
            raise _untrusted(f"a certificate of its signer ended on {one.not_valid_after_utc:%F}")
    key = chain[0].public_key()
    try:  # 4
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise _untrusted("its signer's key is of another kind")
        key.verify(envelope.signature, SIGNED + envelope.plan, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _untrusted("its signature is not its signer's") from error
    plan, questionnaires = opened(envelope, device=device)  # 5
    if any(not each.always for each in plan.show):  # 6
        _zone(plan.zone)
    return Kept(content, plan, questionnaires)


def _untrusted(message: str) -> QuestionnaireError:
    return QuestionnaireError(Fault.UNTRUSTED, "chain", message)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise QuestionnaireError(Fault.BAD_FIELD, "zone", f"{name[:60]!r} is not here") from error


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(name.value) for name in names]


class Plans:
    """Keeps the plan in `state`: `await plans.run()` until cancelled."""

    def __init__(
        self,
        state: Path,
        *,
        server: tuple[str, int] | None,
        clock: Clock,
        rng: random.Random,
        built_in: bytes,
        last_utc_ms: Callable[[], int],
        spread_s: float = 10.0,
    ) -> None:
        self._state = state
        self._server = server
        self._clock = clock
        self._rng = rng
        self._last_utc_ms = last_utc_ms
        self._spread_s = spread_s
        self._built_in = OnScreen(built_in, BUILT_IN)
        self._wake = asyncio.Event()
        self._due_ms = clock.monotonic_ms()
        self._failures = 0
        self._etag = ""
        self.trouble = ""
        self.refused = 0
        self.fetched = 0
        self.now = self._read("plan.json")
        self._before = self._read("plan.before.json")

    # -- what is shown -----------------------------------------------------------------------

    def on_screen(self) -> OnScreen:
        """Return what is to be shown at this moment."""
        if self.now is not None:
            local = self._local(self.now.plan)
            for each in self.now.plan.show:
                if each.always or (local is not None and each.in_force(local)):
                    found = self.now.questionnaires[each.digest]
                    return OnScreen(found.hash, found)
        return self._built_in

    def known(self, hash_: bytes) -> Questionnaire | None:
        """Return the questionnaire with this hash, if it is one that was ours to show of late."""
        if hash_ == self._built_in.hash:
            return BUILT_IN
        for kept in (self.now, self._before):
            for found in () if kept is None else kept.questionnaires.values():
                if found.hash == hash_:
                    return found
        return None

    @property
    def site(self) -> str:
        """The site's name; empty where nobody has said it."""
        return "" if self.now is None else self.now.plan.site

    def _local(self, plan: Plan) -> datetime | None:
        """Return the site's time, None where ours is not known."""
        quality, offset_ms = self._clock.offset()
        if quality is Quality.NONE:
            return None
        utc = datetime.fromtimestamp((self._clock.monotonic_ms() + offset_ms) / 1000, UTC)
        try:
            return utc.astimezone(_zone(plan.zone))
        except QuestionnaireError:
            return None

    # -- fetching ----------------------------------------------------------------------------

    def ring(self) -> None:
        """The bell rang: ask soon."""
        self._soon(self._spread_s)

    def connected(self) -> None:
        """The broker has taken us: a bell may have rung while we were away."""
        self._soon(self._spread_s * CONNECT_SPREAD)

    def _soon(self, spread_s: float) -> None:
        at_ms = self._clock.monotonic_ms() + round(self._rng.uniform(0, spread_s) * 1000)
        self._due_ms = min(self._due_ms, at_ms)
        self._wake.set()

    async def run(self) -> None:
        """Fetch whenever it is due; ends only by cancellation."""
        if self._server is None:
            log.warning("no plan can be fetched: set `server` in the settings")
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
        """Ask once, and note how it went."""
        try:
            changed = await self._fetch()
        except QuestionnaireError as error:
            self.refused += 1
            self._failed(f"{error.fault}: {error}")
            log.error("plan refused", fault=error.fault.value, error=str(error))
        except (EnrolError, OSError, http.client.HTTPException, ValueError) as error:
            self._failed(str(error) or repr(error))
            log.warning("plan not fetched", error=self.trouble)
        else:
            self._failures, self.trouble = 0, ""
            self._due_ms = self._clock.monotonic_ms() + round(
                DAY_MS * (0.75 + self._rng.random() / 2)
            )
            if changed:
                self.fetched += 1
                log.info("plan taken", shown=0 if self.now is None else len(self.now.plan.show))

    def _failed(self, why: str) -> None:
        self.trouble = why
        wait_ms = backoff_ms(self._failures, self._rng.random())
        self._failures += 1
        self._due_ms = self._clock.monotonic_ms() + wait_ms

    async def _fetch(self) -> bool:
        """Ask for the plan; True if another was taken."""
        assert self._server is not None
        host, port = self._server
        timeless = self._clock.offset()[0] is Quality.NONE
        enrolled = identity.read(self._state)
        got = await asyncio.to_thread(
            exchange,
            host,
            port,
            tls_context(identity.for_link(self._state), timeless=timeless),
            method="GET",
            path="/v1/plan",
            etag=self._etag,
            check=self._check_server,
        )
        if got.status == 304:
            return False
        if got.status != 200:
            raise refused(got)
        content = got.text.encode()
        if self.now is not None and content == self.now.content:
            self._etag = got.etag
            return False
        kept = checked(content, device=enrolled.device, roots=self._roots(), now=self._utc())
        await asyncio.to_thread(self._keep, kept)
        if self.now is not None:
            self._before = self.now
        self.now, self._etag = kept, got.etag
        return True

    def _keep(self, kept: Kept) -> None:
        """Put it in force on disk; the one before stays beside it."""
        if self.now is not None:
            identity.put(self._state / "plan.before.json", self.now.content)
        identity.put(self._state / "plan.json", kept.content)

    def _read(self, name: str) -> Kept | None:
        """Return what was kept, if it still stands the check."""
        try:
            content = (self._state / name).read_bytes()
            device = identity.read(self._state).device
            return checked(content, device=device, roots=self._roots(), now=None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("kept plan not read", file=name, error=str(error))
            return None

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
