"""Renewal: the certificate begets the next one, and the old pair works until the new has proved.

    rest -> keyed -> staged -> confirmed -> proved -> rest, with the new pair

Decided here:
- A renewal is due when the server said, or when the broker has refused us: it may know better than
  a device without a clock. Without one, time is the latest of build date and last known UTC.
- The next pair lies beside the one in force (`identity`), made in this order: a new key, synced
  before anything is asked; the bundle; the certificate, once it has been checked. So what lies
  there says how far we were when the power failed; the same key asking again gets the same answer.
- The server sees the new pair first, over HTTPS (`confirm`), then the broker; only then does
  `identity.json` name it, in one replacement, and the old pair goes. Until then every failure, and
  every start, leaves the old pair in force.
- What failed is tried again after a minute, then ever later, at most a day; sooner when the network
  comes back. A pair that is damaged, that the server will not have, or that the broker has refused
  five times, is thrown away for another.
- Once a day the certificate in force is confirmed too: it proves to the server which roots we
  trust, brings roots that are new, and the time of the next renewal, which may have been brought
  forward. A root is only ever let go of with a renewal, whose chain hangs from one that stays.

What comes is checked, in this order; the same numbers stand in the code:

1. The chain's first certificate holds our new key.
2. It is a device's, and its one name is ours.
3. Its authority signed it, and a root that we hold signed the authority.
4. None of the three has ended; none begins later than a day from now, if we know the time.
5. The bundle that came can be read, and still holds that root.
"""

import asyncio
import http.client
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent import identity, keys
from agent.clock import BUILD_MS, Clock
from agent.enrol import EnrolError, ask, instant_ms, keep_root
from agent.identity import DamagedError, Files
from agent.link import Link, LinkError, RefusedLinkError, tls_context
from protocol.frame import Quality

MINUTE_MS = 60_000
DAY_MS = 86_400_000
LOOK_S = 30.0
MOST_REFUSALS = 5
MOST_ROOTS = 8
LIFE_SHARE = 2 / 3  # of a certificate's life, after which it is due if nobody said
USELESS = frozenset({"key_used", "key_in_use", "key_revoked"})
"""What the server says of a key for which it will never make a certificate."""
GIVEN_UP = frozenset(
    {"certificate_unknown", "certificate_revoked", "certificate_replaced", "grace_over"}
)
"""What the server says of a staged certificate that it will never take."""

log = structlog.get_logger(__name__)


class Step(Enum):
    """How far a renewal has come."""

    REST = "rest"
    KEYED = "keyed"  # a new key is on disk
    STAGED = "staged"  # and its certificate
    CONFIRMED = "confirmed"  # the server has seen us hold it
    PROVED = "proved"  # the broker has taken us with it


class Act(Enum):
    """What is done next."""

    CHECK = "check"
    MAKE_KEY = "make a key"
    ASK = "ask"
    CONFIRM = "confirm"
    TRY = "try"
    PROMOTE = "promote"


class Outcome(Enum):
    """How an act ended."""

    DONE = "done"
    FAILED = "failed"  # it may succeed later
    REFUSED = "refused"  # with this pair it will not
    EARLY = "early"  # the server says that it is not time


@dataclass(frozen=True, slots=True)
class Progress:
    """Where we are; times are monotonic milliseconds."""

    step: Step = Step.REST
    failures: int = 0
    refusals: int = 0  # of the new pair, by the broker
    not_before_ms: int = 0
    check_ms: int = 0
    nudged_ms: int = -DAY_MS


class UntrustedError(ValueError):
    """What the server sent is not what we may take; `rule` is its number in the module."""

    def __init__(self, rule: int, message: str) -> None:
        self.rule = rule
        super().__init__(message)


_NEXT = {
    Act.MAKE_KEY: Step.KEYED,
    Act.ASK: Step.STAGED,
    Act.CONFIRM: Step.CONFIRMED,
    Act.TRY: Step.PROVED,
    Act.PROMOTE: Step.REST,
}
_ACT = {
    Step.REST: Act.MAKE_KEY,
    Step.KEYED: Act.ASK,
    Step.STAGED: Act.CONFIRM,
    Step.CONFIRMED: Act.TRY,
    Step.PROVED: Act.PROMOTE,
}


def plan(progress: Progress, now_ms: int, *, due: bool) -> Act | int:
    """Return what is to be done now, or the milliseconds until there may be something."""
    waits = progress.step in (Step.REST, Step.KEYED) and not due
    if not waits and now_ms >= progress.not_before_ms:
        return _ACT[progress.step]
    if now_ms >= progress.check_ms:
        return Act.CHECK
    ahead = progress.check_ms if waits else min(progress.check_ms, progress.not_before_ms)
    return ahead - now_ms


def after(progress: Progress, act: Act, outcome: Outcome, now_ms: int, *, dice: float) -> Progress:
    """Return where we are after an act; `dice` is in [0, 1)."""
    later_ms = now_ms + backoff_ms(progress.failures, dice)
    if act is Act.CHECK:
        if outcome is Outcome.DONE:
            return replace(progress, check_ms=now_ms + round(DAY_MS * (0.75 + dice / 2)))
        return replace(progress, check_ms=max(later_ms, now_ms + 30 * MINUTE_MS))
    if outcome is Outcome.DONE:
        done = replace(progress, step=_NEXT[act], not_before_ms=now_ms)
        if act is Act.PROMOTE:  # the check tells the server, before all else
            rested = replace(done, failures=0, refusals=0, check_ms=now_ms)
            return replace(rested, not_before_ms=now_ms + 60 * MINUTE_MS)
        return replace(done, failures=0) if act is Act.ASK else done
    step = Step.STAGED if act is Act.TRY else progress.step  # the old pair is in force
    failures = progress.failures + 1
    failed = replace(progress, step=step, failures=failures, not_before_ms=later_ms)
    if outcome is Outcome.EARLY:  # the check says when
        return replace(failed, check_ms=now_ms)
    if outcome is Outcome.REFUSED:
        if act is Act.TRY and progress.refusals + 1 < MOST_REFUSALS:
            return replace(failed, refusals=progress.refusals + 1)
        return replace(failed, step=Step.REST, refusals=0)
    return failed


def backoff_ms(failures: int, dice: float) -> int:
    """Return how long to wait after so many failures: a minute, doubled each time, up to a day."""
    return round(min(DAY_MS, MINUTE_MS << min(failures, 20)) * (0.5 + dice / 2))


def nudged(progress: Progress, now_ms: int, *, dice: float) -> Progress:
    """The network is back: what waited is tried within a minute, at most once an hour."""
    if now_ms - progress.nudged_ms < 60 * MINUTE_MS or not progress.failures:
        return progress
    soon_ms = now_ms + round(MINUTE_MS * dice)
    return replace(progress, not_before_ms=min(progress.not_before_ms, soon_ms), nudged_ms=now_ms)


def found(files: Files) -> Step:
    """Return how far a renewal had come, by what lies beside the pair in force."""
    if not files.next.key.exists():
        return Step.REST
    return Step.STAGED if files.next.chain.exists() else Step.KEYED


def check_answer(
    chain_pem: str,
    bundle_pem: str,
    *,
    key: ec.EllipticCurvePublicKey,
    device: str,
    roots: list[x509.Certificate],
    now: datetime,
    knows_time: bool,
) -> None:
    """Hold what came to the module's rules; UntrustedError."""
    try:
        chain = x509.load_pem_x509_certificates(chain_pem.encode())
        coming = x509.load_pem_x509_certificates(bundle_pem.encode())
    except ValueError as error:
        raise UntrustedError(5, "chain or bundle can't be read") from error
    if chain[0].public_key() != key:  # 1
        raise UntrustedError(1, "the certificate is not for our key")
    if _names(chain[0]) != [f"urn:vestibule:device:{device}"]:  # 2
        raise UntrustedError(2, f"the certificate is not {device}'s, or not a device's")
    authority = next((c for c in chain[1:] if signed(chain[0], by=c)), None)  # 3
    root = authority and next((r for r in roots if signed(authority, by=r)), None)
    if authority is None or root is None:
        raise UntrustedError(3, "the certificate hangs from no root that we hold")
    for one in (chain[0], authority, root):  # 4
        if one.not_valid_after_utc <= now:
            raise UntrustedError(4, f"a certificate ended on {one.not_valid_after_utc:%F}")
        if knows_time and one.not_valid_before_utc > now + timedelta(days=1):
            raise UntrustedError(4, f"a certificate begins on {one.not_valid_before_utc:%F}")
    if root not in coming or len(coming) > MOST_ROOTS:  # 5
        raise UntrustedError(5, "the bundle lacks the root that the certificate hangs from")


def joined(bundle_pem: bytes, more_pem: str) -> bytes | None:
    """Return the bundle with the roots that are new; None if there are none, or too many."""
    held = x509.load_pem_x509_certificates(bundle_pem)
    coming = x509.load_pem_x509_certificates(more_pem.encode())
    new = [root for root in coming if root not in held]
    if not new or len(held) + len(new) > MOST_ROOTS:
        return None
    return b"".join(root.public_bytes(Encoding.PEM) for root in [*held, *new])


class Renewal:
    """Keeps the identity in `state` renewed: `await renewal.run()` until cancelled."""

    def __init__(
        self,
        state: Path,
        link: Link,
        *,
        server: tuple[str, int],
        clock: Clock,
        rng: random.Random,
        last_utc_ms: Callable[[], int],
        look_s: float = LOOK_S,
    ) -> None:
        self._state = state
        self._link = link
        self._server = server
        self._clock = clock
        self._rng = rng
        self._last_utc_ms = last_utc_ms
        self._look_s = look_s
        link.on_change, link.on_refusal = self._changed, self.network
        self.enrolled = identity.read(state)
        files = identity.files(state)
        identity.tidy(files)
        now_ms = clock.monotonic_ms()
        self.progress = Progress(
            found(files), not_before_ms=now_ms, check_ms=now_ms + rng.randrange(60 * MINUTE_MS)
        )
        self.not_after = self._ends()

    @property
    def days_left(self) -> float:
        """How long the certificate in force is valid yet."""
        return (self.not_after - self._now()).total_seconds() / 86_400

    def status(self) -> dict[str, object]:
        """Return what `vestibule-agent status` shows of it."""
        return {"certificate_ends": f"{self.not_after:%F}", "renewal": self.progress.step.value}

    def network(self) -> None:
        """The broker has taken us, or refused us: there is a network."""
        now_ms = self._clock.monotonic_ms()
        self.progress = nudged(self.progress, now_ms, dice=self._rng.random())

    def _changed(self, connected: bool) -> None:
        if connected:
            self.network()

    async def run(self) -> None:
        """Renew whenever it is due; ends only by cancellation."""
        while True:
            act = plan(self.progress, self._clock.monotonic_ms(), due=self._due())
            if isinstance(act, Act):
                await self.step(act)
            else:
                await self._clock.sleep(min(act / 1000, self._look_s))

    async def step(self, act: Act) -> None:
        """Do one act, and note how it ended."""
        outcome = Outcome.FAILED
        try:
            outcome = await self._do(act)
        except EnrolError as error:
            outcome = _meaning(act, error)
            log.warning("renewal put off", act=act.value, code=error.code, error=str(error))
        except RefusedLinkError as error:
            outcome = Outcome.REFUSED
            log.error("the broker refused the new certificate", error=str(error))
        except DamagedError as error:
            outcome = Outcome.REFUSED
            log.error("the new certificate is lost", error=str(error))
        except (LinkError, OSError, http.client.HTTPException, ValueError, KeyError) as error:
            log.warning("renewal put off", act=act.value, error=str(error) or repr(error))
        now_ms = self._clock.monotonic_ms()
        self.progress = after(self.progress, act, outcome, now_ms, dice=self._rng.random())
        if self.progress.step is Step.REST and outcome is Outcome.REFUSED and act is not Act.CHECK:
            await asyncio.to_thread(identity.discard, identity.files(self._state))

    async def _do(self, act: Act) -> Outcome:
        files = identity.files(self._state)
        match act:
            case Act.CHECK:
                await self._check(files)
            case Act.MAKE_KEY:
                await asyncio.to_thread(keys.make, files.next.key)
            case Act.ASK:
                await self._ask(files)
            case Act.CONFIRM:
                _check_whole(files.next)
                await self._post("/v1/renew/confirm", files.next, {"roots": _spki(files.next)})
            case Act.TRY:
                if _ends(files.next.chain) > self._now():  # else the broker could only refuse it
                    await self._link.try_identity(identity.of_pair(self.enrolled, files.next))
            case Act.PROMOTE:
                self.enrolled = await asyncio.to_thread(identity.promote, self._state)
                if self._link.identity != (promoted := identity.for_link(self._state)):
                    self._link.renew_identity(promoted)  # it was not tried
                self.not_after = self._ends()
                log.info("certificate renewed", not_after=f"{self.not_after:%F}")
        return Outcome.DONE

    async def _ask(self, files: Files) -> None:
        """Have the new key certified by the old certificate; keep what stands the check."""
        key = keys.read(files.next.key)
        answer = await self._post("/v1/renew", files, {"csr": keys.request(key)})
        chain, bundle = str(answer["chain"]), str(answer["bundle"])
        check_answer(
            chain,
            bundle,
            key=key.public_key(),
            device=self.enrolled.device,
            roots=x509.load_pem_x509_certificates(files.bundle.read_bytes()),
            now=self._now(),
            knows_time=self._knows_time,
        )
        await asyncio.to_thread(identity.put, files.next.bundle, bundle.encode())
        await asyncio.to_thread(identity.put, files.next.chain, chain.encode())

    async def _check(self, files: Files) -> None:
        """Confirm the certificate in force; note when it is due, and roots that are new."""
        body = {"roots": _spki(files), "promoted": True}
        answer = await self._post("/v1/renew/confirm", files, body)
        renew_after_ms = instant_ms(answer.get("renew_after"))
        enrolled = identity.read(self._state)
        if enrolled.pair != files.pair:  # the answer is of the one before
            raise ValueError("another enrolment has taken this one's place meanwhile")
        if renew_after_ms != enrolled.renew_after_ms:
            enrolled = replace(enrolled, renew_after_ms=renew_after_ms)
            await asyncio.to_thread(identity.note, self._state, enrolled)
        self.enrolled = enrolled
        await asyncio.to_thread(keep_root, self._state, answer.get("releases"))
        bundle = joined(files.bundle.read_bytes(), str(answer["bundle"]))
        if bundle is not None:
            await asyncio.to_thread(identity.put, files.bundle, bundle)
            self._link.reread()
            log.info("the fleet has a further root")

    async def _post(self, path: str, files: Files, body: object) -> dict[str, object]:
        """Return what the server answers on a connection that shows this pair."""
        context = tls_context(identity.of_pair(self.enrolled, files), timeless=not self._knows_time)
        host, port = self._server
        text = await asyncio.to_thread(
            ask,
            host,
            port,
            context,
            method="POST",
            path=path,
            body=json.dumps(body),
            check=self._check_server,
        )
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError("the server's answer is not a JSON object")
        return answer

    def _check_server(self, der: bytes) -> None:
        """Without a clock, hold the server's certificate to the latest time known to be past."""
        if x509.load_der_x509_certificate(der).not_valid_after_utc < self._now():
            raise ValueError("the server's certificate has ended")

    def _due(self) -> bool:
        due = self.enrolled.renew_after_ms or self._unsaid_ms()
        return self._now().timestamp() * 1000 >= due or self._link.refused

    def _unsaid_ms(self) -> int:
        """When the certificate is due if nobody said."""
        leaf = _leaf(identity.files(self._state).chain)
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        return round((leaf.not_valid_before_utc + life * LIFE_SHARE).timestamp() * 1000)

    @property
    def _knows_time(self) -> bool:
        return self._clock.offset()[0] is not Quality.NONE

    def _now(self) -> datetime:
        """Return the time; without a clock, the latest that is known to be past."""
        quality, offset_ms = self._clock.offset()
        if quality is Quality.NONE:
            return datetime.fromtimestamp(max(BUILD_MS, self._last_utc_ms()) / 1000, UTC)
        return datetime.fromtimestamp((self._clock.monotonic_ms() + offset_ms) / 1000, UTC)

    def _ends(self) -> datetime:
        return _ends(identity.files(self._state).chain)


def _meaning(act: Act, error: EnrolError) -> Outcome:
    """Return what a refusal by the server means for this act."""
    if error.code == "renewal_too_early":
        return Outcome.EARLY
    useless = {Act.ASK: USELESS, Act.CONFIRM: GIVEN_UP}.get(act, frozenset())
    return Outcome.REFUSED if error.code in useless else Outcome.FAILED


def _check_whole(files: Files) -> None:
    """Raise DamagedError unless key and certificate belong together, and the bundle is there."""
    try:
        whole = _leaf(files.chain).public_key() == keys.read(files.key).public_key()
        x509.load_pem_x509_certificates(files.bundle.read_bytes())
    except (ValueError, IndexError, FileNotFoundError) as error:
        raise DamagedError(f"{files.chain.name} can't be read: {error}") from error
    if not whole:
        raise DamagedError(f"{files.chain.name} is not for {files.key.name}")


def _leaf(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def _ends(path: Path) -> datetime:
    return _leaf(path).not_valid_after_utc


def _names(certificate: x509.Certificate) -> list[str]:
    """Return the names of a certificate that is for a client; else none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    client = list(use) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    return [str(name.value) for name in names] if client else []


def signed(certificate: x509.Certificate, *, by: x509.Certificate) -> bool:
    """Return whether an authority has signed this certificate."""
    try:
        constraints = by.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(by)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return constraints.ca


def _spki(files: Files) -> list[str]:
    """Return the SHA-256, in hex, of the key of each root that we trust with this pair."""
    roots = x509.load_pem_x509_certificates(files.bundle.read_bytes())
    return [keys.spki_sha256(root) for root in roots[:MOST_ROOTS]]
