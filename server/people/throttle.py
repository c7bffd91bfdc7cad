"""Make guessing slow: after a few failures each further try waits, twice as long as the one before.

Invariants: nobody waits longer than `most_s` for the next try, so nobody is ever locked out for
good; a try that is made to wait does not lengthen the wait; a try counts as failed from its
beginning, so that many at once are as slow as one after another; memory is bounded.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import VestibuleError


class TooManyTriesError(VestibuleError):
    """It failed too often; the next try is heard in `wait_s`."""

    code = "too_many_requests"

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(f"the next try is heard in {wait_s:.0f} s")


@dataclass(slots=True)
class _Record:
    failures: int
    last: float
    ready: float


class Throttle:
    """Counts failures by key: `free` cost nothing, then 1 x, 2 x, 4 x ... `first_s` to `most_s`.

    What has not failed for `forget_s` is forgotten. At most `most_keys` are kept; the ones with the
    fewest failures go first.
    """

    def __init__(
        self,
        *,
        free: int,
        first_s: float,
        most_s: float,
        forget_s: float,
        monotonic: Callable[[], float],
        most_keys: int = 10_000,
    ) -> None:
        self._free, self._first_s, self._most_s = free, first_s, most_s
        self._forget_s, self._monotonic, self._most_keys = forget_s, monotonic, most_keys
        self._records: dict[str, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def demand(self, key: str) -> None:
        """Raise TooManyTriesError if `key` has to wait; counts nothing."""
        record, now = self._records.get(key), self._monotonic()
        if record is not None and now < record.ready:
            raise TooManyTriesError(record.ready - now)

    def begin(self, key: str) -> None:
        """Begin a try, counted as failed until told otherwise. Raises TooManyTriesError."""
        self.demand(key)
        now = self._monotonic()
        record = self._records.get(key)
        if record is None or now - record.last >= self._forget_s:
            self._make_room(key)
            record = self._records[key] = _Record(0, now, now)
        record.failures += 1
        record.last, record.ready = now, now + self._delay_s(record.failures)

    def undo(self, key: str) -> None:
        """Take the last try back: it did not fail."""
        record = self._records.get(key)
        if record is not None:
            record.failures -= 1
            record.ready = record.last + self._delay_s(record.failures)
            if record.failures <= 0:
                del self._records[key]

    def forgive(self, key: str) -> None:
        """Forget every failure of `key`."""
        self._records.pop(key, None)

    def _delay_s(self, failures: int) -> float:
        beyond = failures - self._free
        if beyond <= 0:
            return 0.0
        return min(self._first_s * 2.0 ** min(beyond - 1, 60), self._most_s)

    def _make_room(self, key: str) -> None:
        if key not in self._records and len(self._records) >= self._most_keys:
            del self._records[min(self._records, key=lambda k: self._records[k].failures)]


def network(address: str | None) -> str:
    """Return what one caller has: an address of IPv4, a /64 of IPv6."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:  # a socket that has no address
        return ""
    return str(ipaddress.ip_network((found, 64), strict=False) if found.version == 6 else found)
