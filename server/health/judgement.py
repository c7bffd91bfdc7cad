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
    SITE_OFFLINE = "site_offline"
    OFFLINE = "offline"
    OFFLINE_PLANNED = "offline_planned"
    NO_DATA = "no_data"
    NO_HEARTBEAT = "no_heartbeat"
    FLATLINE = "flatline"
    STUCK_COUNTER = "stuck_counter"
    STUCK_BUTTON = "stuck_button"
    REVERSED = "reversed"
    IMBALANCE = "imbalance"
    CLOSED_COUNTING = "closed_counting"
    LEVEL_SHIFT = "level_shift"
    BLOCKED_VIEW = "blocked_view"
    CLOCK_DRIFT = "clock_drift"
    REBOOT_LOOP = "reboot_loop"
    FLAPPING = "flapping"
    DUPLICATE_IDENTITY = "duplicate_identity"
    BACKLOG = "backlog"
    CERTIFICATE = "certificate"
    STORAGE = "storage"
    TEMPERATURE = "temperature"

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
        Condition.SITE_OFFLINE: Meaning(
            Severity.CRITICAL,
            "All or most devices of the site went at once.",
            "The site lost its power or its connection to the internet.",
            "Call the shop: is there power? Then its router, and whoever provides the line.",
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
        Condition.FLATLINE: Meaning(
            Severity.MAJOR,
            "The counter counts nobody, and people are there.",
            "Its sensor is dead, covered or unplugged, while its electronics still run.",
            "Look for what hangs before it, check its cable, restart the device; then swap it.",
        ),
        Condition.STUCK_COUNTER: Meaning(
            Severity.MAJOR,
            "The counter counts like clockwork.",
            "A line of the sensor is stuck, or something swings through it at an even pace.",
            "Look for a fan, a flag or a swinging door in its view; restart it; then swap it.",
        ),
        Condition.STUCK_BUTTON: Meaning(
            Severity.MAJOR,
            "A button of the kiosk presses itself.",
            "The button is jammed, wet or held down by something that leans on it.",
            "Free and clean the button; if it goes on, restart the kiosk or swap it.",
        ),
        Condition.REVERSED: Meaning(
            Severity.MAJOR,
            "The counter takes in for out.",
            "It was mounted or remounted the other way round, or its lines were swapped.",
            "Enter a calibration that reverses it, from when it was remounted.",
        ),
        Condition.IMBALANCE: Meaning(
            Severity.MINOR,
            "Many more came in than went out, or fewer.",
            "A counter misses one direction, or one door of the site has none.",
            "Walk through each door both ways, compare, and look for what covers a sensor.",
        ),
        Condition.CLOSED_COUNTING: Meaning(
            Severity.MINOR,
            "People are counted while the shop is closed.",
            "Cleaners, deliveries or stocktaking; or opening hours or the clock are wrong.",
            "Ask the shop who was there; enter its opening hours; if nobody was, check the clock.",
        ),
        Condition.LEVEL_SHIFT: Meaning(
            Severity.MINOR,
            "For days the counter counts much more or less than in the same hours before.",
            "The entrance was rebuilt, another opened, a campaign runs, or the sensor was moved.",
            "Ask what changed at the entrance; if nothing, recount fifteen minutes by eye.",
        ),
        Condition.BLOCKED_VIEW: Meaning(
            Severity.MAJOR,
            "The counter sees a part of what passes.",
            "A poster or a plant hangs in its view, it is dirty or dark, or it was knocked aside.",
            "Clear the sensor's view, wipe it, switch the light on; then do a walk test.",
        ),
        Condition.CLOCK_DRIFT: Meaning(
            Severity.MAJOR,
            "The device's clock is wrong.",
            "It cannot reach a time server, or its battery is empty.",
            "Let it reach a time server: it corrects itself, and what was undated is placed.",
        ),
        Condition.REBOOT_LOOP: Meaning(
            Severity.MAJOR,
            "The device starts again and again.",
            "Its power supply is weak, its storage card fails, or a new version of it crashes.",
            "Swap the power supply and cable; hold rollouts; if it goes on, swap the device.",
        ),
        Condition.FLAPPING: Meaning(
            Severity.MINOR,
            "The connection comes and goes.",
            "The radio is too weak, a plug is loose, or a router ends sessions.",
            "Reseat the cable, or move the access point; look at the router's session limits.",
        ),
        Condition.DUPLICATE_IDENTITY: Meaning(
            Severity.CRITICAL,
            "Two speak with this device's identity.",
            "Its storage was copied to another device, or its key was stolen.",
            "Quarantine the device, find both, and let the right one enrol anew.",
        ),
        Condition.BACKLOG: Meaning(
            Severity.MAJOR,
            "The device keeps more and more that does not arrive.",
            "Its link is too slow, or what it sends is not accepted.",
            "Look at its link and at its last receipts; nothing is lost while its outbox has room.",
        ),
        Condition.CERTIFICATE: Meaning(
            Severity.MAJOR,
            "The certificate ends before the device is expected again.",
            "It could not renew: it is seldom online, or cannot reach the server over HTTPS.",
            "Bring it online before that day and see that it reaches the server's HTTPS port.",
        ),
        Condition.STORAGE: Meaning(
            Severity.MINOR,
            "The device's disk is nearly full, or refuses.",
            "Logs or another program fill it, or its storage card is worn out.",
            "Free space; if its outbox has trouble, swap the storage card before the next outage.",
        ),
        Condition.TEMPERATURE: Meaning(
            Severity.MINOR,
            "The device is too hot or too cold to last.",
            "Sun, a heater or a closed case; a fan that stopped.",
            "Give it air or shade; move it if that does not help.",
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
