"""The agent's log: lines to standard error, the last of them kept in memory, no secret in any.

A level that is set from afar counts from the next line on. What is kept is bounded: `KEPT` lines of
at most `LONGEST` characters, some 60 kB.
"""

import logging
import re
import sys
from collections import deque
from collections.abc import MutableMapping
from typing import Any

import structlog

KEPT = 200
LONGEST = 300
HIDDEN = "(hidden)"
_SECRET = re.compile(r"(?i)secret|token|voucher|claim|password|private|csr|(?:^|_)pin(?:$|_)")
_tail: deque[str] = deque(maxlen=KEPT)
_ours = False


def configure(level: str) -> None:
    """Write logs from `level` on; once for a process."""
    global _ours
    _ours = True
    structlog.configure(
        processors=[
            hide_secrets,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
            _keep,
        ],
        wrapper_class=_from(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def set_level(level: str) -> None:
    """Write from another level on; nothing where somebody else has set up the log."""
    if _ours:
        structlog.configure(
            processors=structlog.get_config()["processors"],
            wrapper_class=_from(level),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


def tail(lines: int) -> list[str]:
    """Return the last lines."""
    return list(_tail)[-lines:] if lines > 0 else []


def hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out the values of fields that are named like secrets."""
    for name in event:
        if name != "event" and _SECRET.search(name):
            event[name] = HIDDEN
    return event


def _keep(_: Any, __: str, line: Any) -> Any:
    _tail.append(str(line)[:LONGEST])
    return line


def _from(level: str) -> type[structlog.typing.FilteringBoundLogger]:
    return structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
