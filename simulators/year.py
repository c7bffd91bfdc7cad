"""A year of certificates in virtual time: devices that come and go, and renew as the agent does.

What a device does is the agent's own machine (`agent.renewal.plan`, `after`, `check_answer`); its
files are kept in memory here, its HTTPS is a call, and the broker's handshake a rule. The server is
a `Desk`, real or not.

Assumed: a device is away every 45 days on average, two days on average; three times in a hundred
for 60 to 260 days, which is longer than most certificates hold after they are due, and within what
the server's grace allows. The fleet is in its steady state: ages are as renewals leave them.
"""

import heapq
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.renewal import (
    DAY_MS,
    Act,
    Outcome,
    Progress,
    Step,
    after,
    check_answer,
    joined,
    nudged,
    plan,
)

BETWEEN_DAYS, AWAY_DAYS = 45.0, 2.0
LONG_SHARE, LONG_DAYS = 0.03, (60.0, 260.0)
DUE_SHARE = (0.5, 0.75)  # of a certificate's life
LIFE_DAYS = 365.0
_BEFORE_DAYS = 300.0  # absences may have begun before the year

Absence = tuple[float, float]


class DeskRefusedError(Exception):
    """The server refuses; `code` is its own."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Pair:
    """A key, its certificate and whom its device trusts with it."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    chain: str = ""
    bundle: str = ""

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain.encode())

    @property
    def shown(self) -> bytes:
        """What a connection shows."""
        return self.leaf.public_bytes(Encoding.DER)

    @property
    def csr(self) -> str:
        """The request for a certificate of this key."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return request.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


class Desk(Protocol):
    """The server, as devices meet it. Raises DeskRefusedError."""

    async def renew(self, pair: Pair, csr: str, now: datetime) -> tuple[str, str]:
        """Return the chain of the next certificate, and the trust bundle."""
        ...

    async def confirm(self, pair: Pair, *, promoted: bool, now: datetime) -> tuple[datetime, str]:
        """Return when the certificate is due, and the trust bundle."""
        ...

    def connects(self, pair: Pair, now: datetime) -> bool:
        """Return whether the broker and the device take each other."""
        ...


@dataclass(slots=True)
class Door:
    """One device through the year; days and milliseconds count from the year's beginning."""

    device: str
    pair: Pair
    due: datetime
    away: list[Absence]
    rng: random.Random
    began: datetime
    next: Pair | None = None
    progress: Progress = field(default_factory=Progress)
    renewed_ms: list[int] = field(default_factory=list)
    lapses: int = 0  # times it came back with a certificate that had ended
    refused: Counter[str] = field(default_factory=Counter)

    def back_ms(self, now_ms: int) -> int | None:
        """Return when it is back, if it is away."""
        day = now_ms / DAY_MS
        for begins, ends in self.away:
            if begins <= day < ends:
                return round(ends * DAY_MS) + 1
        return None

    async def live(self, desk: Desk, now_ms: int) -> int:
        """Do what is to be done now; return when there may be more."""
        back_ms = self.back_ms(now_ms)
        if back_ms is not None:
            return back_ms
        if self.progress.failures:
            self.progress = nudged(self.progress, now_ms, dice=self.rng.random())
        now = self.began + timedelta(milliseconds=now_ms)
        while isinstance(act := plan(self.progress, now_ms, due=now >= self.due), Act):
            outcome = await self._do(desk, act, now)
            self.progress = after(self.progress, act, outcome, now_ms, dice=self.rng.random())
            if act is Act.PROMOTE:
                self.renewed_ms.append(now_ms)
            if outcome is Outcome.REFUSED and self.progress.step is Step.REST:
                self.next = None
        until_due_ms = round((self.due - now) / timedelta(milliseconds=1))
        return now_ms + (min(act, until_due_ms) if until_due_ms > 0 else act)

    async def _do(self, desk: Desk, act: Act, now: datetime) -> Outcome:
        try:
            return await self._done(desk, act, now)
        except DeskRefusedError as error:
            self.refused[error.code] += 1
            return Outcome.EARLY if error.code == "renewal_too_early" else Outcome.FAILED

    async def _done(self, desk: Desk, act: Act, now: datetime) -> Outcome:
        match act:
            case Act.CHECK:
                self.due, bundle = await desk.confirm(self.pair, promoted=True, now=now)
                if bundle != self.pair.bundle:
                    more = joined(self.pair.bundle.encode(), bundle)
                    if more is not None:
                        self.pair = replace(self.pair, bundle=more.decode())
            case Act.MAKE_KEY:
                self.lapses += self.pair.leaf.not_valid_after_utc <= now
                self.next = Pair(ec.generate_private_key(ec.SECP256R1()))
            case Act.ASK:
                assert self.next is not None
                chain, bundle = await desk.renew(self.pair, self.next.csr, now)
                check_answer(
                    chain,
                    bundle,
                    key=self.next.key.public_key(),
                    device=self.device,
                    roots=x509.load_pem_x509_certificates(self.pair.bundle.encode()),
                    now=now,
                    knows_time=True,
                )
                self.next = replace(self.next, chain=chain, bundle=bundle)
            case Act.CONFIRM:
                assert self.next is not None
                await desk.confirm(self.next, promoted=False, now=now)
            case Act.TRY:
                assert self.next is not None
                if not desk.connects(self.next, now):
                    return Outcome.REFUSED
            case Act.PROMOTE:
                assert self.next is not None
                self.pair, self.next = self.next, None
        return Outcome.DONE


def dice(seed: int, device: str) -> random.Random:
    """Return the chances of a device."""
    return random.Random(f"{seed}/{device}")


def absences(rng: random.Random, days: float) -> list[Absence]:
    """Return when a device is away, from long before day 0 on."""
    found: list[Absence] = []
    day = -_BEFORE_DAYS
    while day < days:
        begins = day + rng.expovariate(1 / BETWEEN_DAYS)
        is_long = rng.random() < LONG_SHARE
        lasts = rng.uniform(*LONG_DAYS) if is_long else rng.expovariate(1 / AWAY_DAYS)
        day = begins + lasts
        found.append((begins, day))
    return found


def steady(rng: random.Random) -> tuple[float, float]:
    """Return a certificate's age at day 0 and the day it is due, as renewals leave them."""
    while True:  # the longer it rests, the likelier day 0 meets it
        share = rng.uniform(*DUE_SHARE)
        if rng.random() < share / DUE_SHARE[1]:
            rests = LIFE_DAYS * share
            age = rests * rng.random()
            return age, rests - age


def planned(
    devices: int, days: int, *, seed: int, rule: Callable[[str, str, datetime], datetime]
) -> list[int]:
    """Return how many devices of a fleet renew on each day, by the server's own rule.

    Neither keys nor rows: only who is due when, and who is away then.
    """
    began = datetime.fromisoformat("2027-01-01T00:00:00+00:00")
    rng = random.Random(f"{seed}/plan")
    counts = [0] * days
    for number in range(devices):
        away = absences(rng, days)
        day = steady(rng)[1]
        while day < days:
            day = next((ends for begins, ends in away if begins <= day < ends), day)
            if day < days:
                counts[int(day)] += 1
            at = began + timedelta(days=day)
            due = rule(f"door-{number}", f"{rng.getrandbits(127):x}", at)
            day = (due - began) / timedelta(days=1)
    return counts


async def run(
    doors: list[Door], desk: Desk, *, days: int, each_day: Callable[[int], Awaitable[None]]
) -> None:
    """Let all doors live through the year; `each_day` comes before whatever happens on a day."""
    events = [(door.rng.randrange(DAY_MS), number) for number, door in enumerate(doors)]
    heapq.heapify(events)
    for day in range(days):
        await each_day(day)
        while events[0][0] < (day + 1) * DAY_MS:
            now_ms, number = events[0]
            next_ms = await doors[number].live(desk, now_ms)
            heapq.heapreplace(events, (max(next_ms, now_ms + 1), number))
