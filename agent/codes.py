"""A stock of one-time codes that lead to a survey: handed out beforehand, each shown once.

Decided here:
- The stock lies in `codes.json` as it came, checked as it comes and again at each start; how many
  of it were shown lies in `codes.shown`, on disk before a code is. So a power cut may lose a code
  and never shows one twice. A stock without its own mark beside it counts as shown.
- No code is shown where none is left, where the stock is over, or where the time is not known: a
  visitor who scans what is refused comes no second time.
- Nothing says at which press a code was shown: neither the mark nor anything the server hears.
- The server is asked as for a plan (`agent.content`), and within an hour when few codes are left.
  It is told what is held, and says that nothing is offered here, that it is good still, or what
  replaces it.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from agent import identity
from agent.content import Asking, Terms, vouched
from protocol.codes import MAX_ENVELOPE, Stock, read_envelope, read_stock
from protocol.content import fields_of, parsed
from protocol.frame import Quality

FEW = 40  # left: time to ask for more
ASK_WITHIN_S = 3_600.0  # at a moment that tells nobody when the last code was shown

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Offered:
    """A code to be shown: where it leads, what is typed where, and its picture's rows."""

    url: str = field(repr=False)
    typed: str = field(repr=False)
    address: str
    rows: list[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Held:
    """A stock that has stood the check, and by what its mark knows it."""

    stock: Stock
    digest: str


class Codes(Asking):
    """Keeps the stock in `state`: `await codes.run()` until cancelled."""

    what = "codes"

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._held = self._read()
        self._shown = self._read_mark()
        self.given = 0

    # -- showing -----------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """How many codes have not been shown."""
        return 0 if self._held is None else max(0, len(self._held.stock.codes) - self._shown)

    @property
    def ready(self) -> bool:
        """True if a code can be shown now."""
        if self._held is None or not self.left or self._clock.offset()[0] is Quality.NONE:
            return False
        return round(self._utc().timestamp() * 1000) < self._held.stock.until_ms

    def take(self) -> Offered | None:
        """Return the next code, which is shown this once; None if there is none to show."""
        if not self.ready or self._held is None:
            return None
        stock, number = self._held.stock, self._shown
        try:
            self._mark(self._held.digest, number + 1)
        except OSError as error:
            log.error("no code is shown: its mark can't be written", error=str(error))
            return None
        self._shown = number + 1
        self.given += 1
        if self.left < FEW and not self.trouble:
            self._soon(ASK_WITHIN_S)
        code = stock.codes[number]
        url = f"{stock.address}/{code.token}"
        return Offered(url, code.typed, stock.address, _drawn(url))

    # -- fetching ----------------------------------------------------------------------------

    async def _fetch(self) -> bool:
        held = None if self._held is None else self._held.stock
        said: dict[str, object] = {}
        if held is not None:
            said = {"offer": held.offer, "left": self.left, "until": held.until_ms}
        got = await self._asked("POST", "/v1/codes", body=json.dumps(said))
        answer = parsed(got.text.encode(), 2 * MAX_ENVELOPE)
        fields = fields_of(answer, "", ("standing",), ("envelope",))
        if fields["standing"] == "none":
            self._drop()
            return held is not None
        if fields["standing"] == "keep":
            return False
        envelope = str(fields.get("envelope", "")).encode()
        taken = self._checked(envelope, now=self._utc())
        self._keep(envelope, taken)
        self._held, self._shown = taken, 0
        return True

    def _checked(self, content: bytes, *, now: datetime | None) -> Held:
        envelope = read_envelope(content)
        vouched(envelope, roots=self._roots(), now=now)
        stock = read_stock(envelope.text, device=self._device())
        return Held(stock, hashlib.sha256(envelope.text).hexdigest())

    def _keep(self, envelope: bytes, taken: Held) -> None:
        """Put it on disk, the mark first: cut off between the two, nothing is shown twice."""
        self._mark(taken.digest, 0)
        identity.put(self._state / "codes.json", envelope, mode=0o600)

    def _drop(self) -> None:
        self._held, self._shown = None, 0
        for name in ("codes.json", "codes.shown"):
            (self._state / name).unlink(missing_ok=True)

    # -- on disk -----------------------------------------------------------------------------

    def _mark(self, digest: str, shown: int) -> None:
        mark = json.dumps({"stock": digest, "shown": shown}).encode()
        identity.put(self._state / "codes.shown", mark)

    def _read(self) -> Held | None:
        """Return the stock that was kept, if it still stands the check."""
        try:
            return self._checked((self._state / "codes.json").read_bytes(), now=None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("kept codes not read", error=str(error))
            return None

    def _read_mark(self) -> int:
        """Return how many of the stock were shown; all, unless its own mark says fewer."""
        if self._held is None:
            return 0
        with suppress(OSError, ValueError, KeyError, TypeError):
            mark = json.loads((self._state / "codes.shown").read_bytes())
            if mark["stock"] == self._held.digest and int(mark["shown"]) >= 0:
                return int(mark["shown"])
        log.error("the codes' mark is not theirs: none of them is shown")
        return len(self._held.stock.codes)


def _drawn(url: str) -> list[str]:
    """Return a QR code's rows, each a text of 0 and 1; error correction M, for a clean screen."""
    import segno  # for the few kiosks that show codes, and then some 40 ms

    found = segno.make(url, error="m", micro=False, boost_error=False)
    return ["".join("1" if dark else "0" for dark in row) for row in found.matrix]
