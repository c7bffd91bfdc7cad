"""Which records an overfull outbox gives up first: rules over records, no disk."""

from agent.held import Held
from protocol.frame import MAX_SPAN_MS, Quality

STEP = 256  # records looked at in one thinning


def choose(rows: list[Held], *, free: int) -> list[Held]:
    """Return the oldest of `rows` that may become one gap and free that many bytes, or fewer.

    At least two and within a gap's longest span; none if there are no two.
    """
    while len(rows) > 1 and rows[1].meta.end_ms - rows[0].meta.start_ms > MAX_SPAN_MS:
        rows = rows[1:]  # a gap that is as long as gaps get
    span = [row for row in rows if row.meta.end_ms - rows[0].meta.start_ms <= MAX_SPAN_MS]
    if len(span) < 2:
        return []
    freed, take = 0, 0
    while take < len(span) and (take < 2 or freed < max(free, 1)):
        freed += len(span[take].frame)
        take += 1
    return span[:take]


def too_old(rows: list[Held], *, newest_ms: int, max_age_ms: int) -> bool:
    """True if the oldest record that is no gap ended more than `max_age_ms` before `newest_ms`."""
    first = next((row for row in rows if row.seq == row.to_seq), None)
    return (
        first is not None
        and first.meta.quality is not Quality.NONE
        and newest_ms - first.meta.end_ms - first.meta.offset_ms > max_age_ms
    )
