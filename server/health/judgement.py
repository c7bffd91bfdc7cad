"""What passes between the parts of health: a judgement of one condition of one subject. Pure.

Conditions judge, episodes remember, incidents group, notices tell; nothing else passes between
them. *Unknown never clears*: it says that nobody can tell just now. Each condition has, by its own
code, how bad it is, its probable cause and what to try first; pages translate by that code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType


class SubjectKind(StrEnum):
    """What can be wrong."""

    PLATFORM = "platform"
    SITE = "site"
    DEVICE = "device"
    SPOT = "spot"


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Something of which a condition is judged; `row` is its number in its table, the platform's 0.

    Raises ValueError if it names no row.
    """

    kind: SubjectKind
    row: int = 0

    def __post_init__(self) -> None:
        if (self.row == 0) != (self.kind is SubjectKind.PLATFORM) or self.row < 0:
            raise ValueError(f"a {self.kind} cannot have row {self.row}")


PLATFORM = Subject(SubjectKind.PLATFORM)


class Severity(StrEnum):
    """How bad it is, from what stops a count to what may wait for the next visit."""

    CRITICAL = "critical"  # nothing is counted, or nobody knows
    MAJOR = "major"  # counted, and not to be trusted or not arriving
    MINOR = "minor"  # right today, and will not stay so
    INFO = "info"  # as it should be; said so that nobody asks


class Condition(StrEnum):
    """What can be wrong with a subject; the value is its code in rows, API and catalogues."""

    PLATFORM_UNKNOWN = "platform_unknown"
    OFFLINE = "offline"
    OFFLINE_PLANNED = "offline_planned"
    NO_DATA = "no_data"
    NO_HEARTBEAT = "no_heartbeat"

    @property
    def meaning(self) -> "Meaning":
        """How bad it is, why it usually is so, and what to try first."""
        return MEANINGS[self]


@dataclass(frozen=True, slots=True)
class Meaning:
    """A condition in words: one sentence each, in English, for API and logs."""

    severity: Severity
    title: str
    cause: str
    remedy: str


MEANINGS: Mapping[Condition, Meaning] = MappingProxyType(
    {
        Condition.PLATFORM_UNKNOWN: Meaning(
            Severity.CRITICAL,
            "Nobody can tell how the devices are.",
            "The broker, the database or this server's own link is away or behind.",
            "Look at the server's /readyz and its log; the devices keep what they count.",
        ),
        Condition.OFFLINE: Meaning(
            Severity.CRITICAL,
            "The device is gone.",
            "It lost power or its network, or it was unplugged.",
            "Check power and network cable at the device, then the site's own connection.",
        ),
        Condition.OFFLINE_PLANNED: Meaning(
            Severity.INFO,
            "The device said goodbye.",
            "It was switched off, restarted or updated in an orderly way.",
            "Wait until it is back, or switch it on again.",
        ),
        Condition.NO_DATA: Meaning(
            Severity.MAJOR,
            "The device is there, and its counts do not arrive.",
            "Its sensor or its recorder has stopped, or its disk refuses to keep counts.",
            "Restart the device; if that does not help, run `vestibule-agent doctor` on it.",
        ),
        Condition.NO_HEARTBEAT: Meaning(
            Severity.MAJOR,
            "The device is connected and says nothing of its health.",
            "Its agent hangs or is overloaded.",
            "Restart the device; if it comes back so, replace its storage card.",
        ),
    }
)


class Standing(StrEnum):
    """What is judged of a condition. Unknown neither opens nor ends anything."""

    FIRING = "firing"
    CLEAR = "clear"
    UNKNOWN = "unknown"


Evidence = Mapping[str, float | str]
"""What it was judged by, by name, with units in the names (`silent_s`, `limit_s`)."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A condition of a subject: since when it stands so, by what, and what it touches.

    `since` is when it began to stand so, as far as is known, not when it was found out.
    `affected_from` to `affected_until` is the stretch whose counts it touches: none if it touches
    none, no end if it goes on.
    """

    subject: Subject
    condition: Condition
    standing: Standing
    since: datetime
    evidence: Evidence = field(default_factory=dict)
    affected_from: datetime | None = None
    affected_until: datetime | None = None

    def __post_init__(self) -> None:
        if self.affected_until is not None and (
            self.affected_from is None or self.affected_until < self.affected_from
        ):
            raise ValueError("what is affected begins before it ends")
