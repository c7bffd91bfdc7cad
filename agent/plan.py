"""What this kiosk is to show: fetched, checked, kept, and shown for ever where no server answers.

Decided here:
- What was taken lies in `plan.json` as it came; the one before in `plan.before.json`, since a press
  may still come for what was on the screen a moment ago. Both are checked again at each start.
- A plan that is refused changes nothing: the last good one stays.

A plan is checked in this order; the same numbers stand in the code:

1. It is an envelope, within its caps.
2. The content service signed it (`agent.content`, 1 to 3).
3. The plan is ours, and brings each questionnaire that it names, whole.
4. Its time zone is known here, if anything in it goes by the time.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import structlog
from cryptography import x509

from agent import identity
from agent.content import Asking, Terms, vouched
from agent.kiosk import BUILT_IN
from protocol.content import ContentError, Fault
from protocol.frame import Quality
from protocol.plan import Plan, opened, read_envelope
from protocol.questionnaire import Questionnaire

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
    """Hold an envelope to the module's rules; `now` None: whatever has ended. ContentError."""
    envelope = read_envelope(content)  # 1
    vouched(envelope, roots=roots, now=now)  # 2
    plan, questionnaires = opened(envelope, device=device)  # 3
    if any(not each.always for each in plan.show):  # 4
        _zone(plan.zone)
    return Kept(content, plan, questionnaires)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ContentError(Fault.BAD_FIELD, "zone", f"{name[:60]!r} is not here") from error


class Plans(Asking):
    """Keeps the plan in `state`: `await plans.run()` until cancelled."""

    what = "plan"

    def __init__(self, terms: Terms, *, built_in: bytes) -> None:
        super().__init__(terms)
        self._built_in = OnScreen(built_in, BUILT_IN)
        self._etag = ""
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
        except ContentError:
            return None

    # -- fetching ----------------------------------------------------------------------------

    async def _fetch(self) -> bool:
        got = await self._asked("GET", "/v1/plan", etag=self._etag)
        if got.status == 304:
            return False
        self.ring()  # to say soon that this is what we hold
        content = got.text.encode()
        if self.now is not None and content == self.now.content:
            self._etag = got.etag
            return False
        kept = checked(content, device=self._device(), roots=self._roots(), now=self._utc())
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
            return checked(content, device=self._device(), roots=self._roots(), now=None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("kept plan not read", file=name, error=str(error))
            return None
