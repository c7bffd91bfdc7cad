"""The worker that keeps the releases' metadata fresh, and raises an alarm where it can't.

The timestamp is signed anew each hour and good for three days, the snapshot for two weeks; roots
and targets are signed by people, for years and a year. For how long each is good still is
`vestibule_firmware_metadata_left_seconds`. Once one of them has run out, devices install nothing;
what they run goes on.
"""

import asyncio
from datetime import timedelta

import structlog
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from server import metrics
from server.clock import Clock, at
from server.db.turns import repeat
from server.errors import VestibuleError
from server.firmware.repository import SNAPSHOT_LIFE, TIMESTAMP_LIFE, Repository

REST_S = 60.0
ALARM = {
    Root.type: timedelta(days=60),  # people must meet
    Targets.type: timedelta(days=30),
    Snapshot.type: SNAPSHOT_LIFE / 4,
    Timestamp.type: TIMESTAMP_LIFE * 2 / 3,  # 24 tries in vain
}

log = structlog.get_logger(__name__)


class Signing:
    """Signs what is due: `await run()` until cancelled."""

    def __init__(self, repository: Repository, clock: Clock) -> None:
        self._repository = repository
        self._clock = clock
        self._told: frozenset[str] = frozenset()
        self._trouble = ""

    async def run(self) -> None:
        """Look at it each minute; ends only by cancellation."""
        await repeat(self.turn, rest_s=REST_S, away="releases not looked after")

    async def turn(self) -> None:
        """Sign what is due, and say what runs out."""
        await asyncio.to_thread(self.look)

    def look(self) -> None:
        """As `turn`, in the calling thread."""
        now = at(self._clock.now_ms())
        try:
            signed = self._repository.resign(now=now)
        except (OSError, VestibuleError) as error:
            self._failed(str(error))
        else:
            if self._trouble:
                log.info("releases can be signed again")
            self._trouble = ""
            if signed:
                log.debug("releases signed", roles=signed)
        try:
            left = self._repository.left(now=now)
        except (OSError, VestibuleError) as error:
            self._failed(str(error))
            return
        for role, time in left.items():
            metrics.FIRMWARE_METADATA_LEFT.labels(role).set(time.total_seconds())
        self._tell({role: time for role, time in left.items() if time < ALARM[role]})

    def _failed(self, trouble: str) -> None:
        metrics.FIRMWARE_SIGNINGS_FAILED.inc()
        say = log.debug if trouble == self._trouble else log.error
        say("releases cannot be signed: devices will install nothing", error=trouble)
        self._trouble = trouble

    def _tell(self, short: dict[str, timedelta]) -> None:
        """Say once of each role that it runs out."""
        for role in sorted(set(short) - self._told):
            hours = round(short[role].total_seconds() / 3600)
            log.error("releases run out: devices will install nothing", role=role, hours=hours)
        self._told = frozenset(short)
