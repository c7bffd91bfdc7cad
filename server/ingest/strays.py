"""What arrives and belongs in no sequence: another's topic, an unknown device, a broken header.

All of it is counted; a sample is kept to look at, so that no sender can fill the tables.
"""

import json
from collections.abc import Iterable

import asyncpg

from protocol.frame import EXPLAIN
from server import log, metrics
from server.clock import Clock
from server.ingest.batch import Batch
from server.ingest.places import Device
from server.ingest.rows import Finding

SAMPLES_AN_HOUR = 100
SAMPLED_BYTES = 4096  # of a frame that is none of ours
_log = log.get("ingest")


class Sampler:
    """Lets so many things of each name through in an hour."""

    def __init__(self, clock: Clock, *, an_hour: int = SAMPLES_AN_HOUR) -> None:
        self._clock = clock
        self._an_hour = an_hour
        self._hour = -1
        self._seen: dict[str, int] = {}

    def wants(self, name: str) -> bool:
        """True if there is room for one more of `name` in this hour."""
        hour = int(self._clock.monotonic() // 3600)
        if hour != self._hour:
            self._hour, self._seen = hour, {}
        seen = self._seen.get(name, 0)
        self._seen[name] = seen + 1
        return seen < self._an_hour


async def keep(connection: asyncpg.Connection, batch: Batch, sampler: Sampler) -> None:
    """Keep a sample of the batch's strays and refused headers."""
    for why, topic in batch.strays:
        if sampler.wants(f"stray {why}"):
            text = topic.decode(errors="replace")
            await add(connection, f"stray {why}", None, topic=text)
            _log.warning("stray message", why=why, topic=text)
    for refused in batch.refused:
        metrics.FRAMES_DROPPED.labels("header").inc()
        metrics.FRAMES_QUARANTINED.labels(refused.reason.name.lower()).inc()
        if sampler.wants("header"):
            await connection.execute(
                "insert into quarantine (device, reason, detail, frame) values ($1, $2, $3, $4)",
                refused.device.name,
                refused.reason,
                EXPLAIN[refused.reason],
                refused.frame[:SAMPLED_BYTES],
            )


async def add(
    connection: asyncpg.Connection, finding: str, device: Device | None, **detail: str | int
) -> None:
    """Record a finding outside a batch's own transaction."""
    metrics.FINDINGS.labels(finding).inc()
    await connection.execute(
        "insert into findings (device_id, finding, detail) values ($1, $2, $3)",
        None if device is None else device.row,
        finding,
        json.dumps(detail),
    )


def count(findings: Iterable[Finding]) -> None:
    """Count and log the findings of a committed batch."""
    for found in findings:
        metrics.FINDINGS.labels(found.finding).inc()
        _log.warning("finding", finding=found.finding, device=found.boot.device.name, seq=found.seq)
