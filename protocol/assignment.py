"""Assignments: what one device is to install, now; and the envelope that one travels in.

An assignment is a document in canonical form (`content`):

    {"format": 1, "device": "dc-…", "hardware": "DC2", "rollout": "ro-…", "execution": "exe-…",
     "attempt": 1, "bundle": [{"component": "agent", "version": "1.2.3", "floor": "1.1.0",
     "target": "agent/1.2.3/64 hex digits.tar", "length": 81920, "sha256": 64 hex digits}, ...],
     "nonce": 32 hex digits, "not_after": UTC in ms, "window": [[from, until], ...],
     "idle_s": 60, "delay_s": 86400, "trial_s": 600, "urgent": false}

`bundle` is installed whole, in this order, or not at all. `nonce` is the one that the device asked
with. It may install within one of `window` (UTC in ms; none: at any time) once nobody has used it
for `idle_s`; people, and a sensor that is busy, hold it up for `delay_s` in all. Then it has
`trial_s` to prove itself. `urgent` waits for neither.

It travels in an envelope (`envelope`) of the kind "assignment". An assignment says what is to be
installed, never what may be: that is said by releases, signed offline (`release`), and a device
installs only where the two agree.
"""

import re
from dataclasses import asdict, dataclass
from typing import Final

from protocol.content import (
    FORMAT,
    ContentError,
    Fault,
    bad,
    canonical,
    document,
    fields_of,
    integer,
    list_of,
    matching,
    parsed,
    text_of,
)
from protocol.envelope import Sealed
from protocol.identity import device_id
from protocol.release import (
    COMPONENTS,
    MAX_LENGTH,
    Component,
    component_of,
    digest_of,
    hardware_of,
    version_of,
)

SIGNER: Final = "urn:vestibule:service:svc-firmware"
"""The name of the one certificate that may sign assignments."""
SIGNED: Final = b"vestibule assignment 1\n"
MAX_WINDOWS = 14
MAX_ASSIGNMENT = 8_192  # two components and 14 windows have some 1.5 kB
MAX_ENVELOPE = 32_768
MAX_ATTEMPT = 1_000
MAX_IDLE_S = 86_400
MAX_DELAY_S = 30 * 86_400
MAX_TRIAL_S = 86_400
_MAX_UTC_MS = 1 << 48
_NONCE = re.compile("[0-9a-f]{32}")
_REF = re.compile(r"[a-z]{2,8}-[a-z0-9]{8,32}")


@dataclass(frozen=True, slots=True)
class Item:
    """One component of a bundle; `target` is its name among the releases."""

    component: Component
    version: str
    floor: str
    target: str
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one device is to install; `window` are spans of UTC in ms."""

    device: str
    hardware: str
    rollout: str
    execution: str
    attempt: int
    bundle: tuple[Item, ...]
    nonce: str
    not_after_ms: int
    window: tuple[tuple[int, int], ...] = ()
    idle_s: int = 0
    delay_s: int = 86_400
    trial_s: int = 600
    urgent: bool = False

    def content(self) -> bytes:
        """Return it in canonical form."""
        return canonical(
            {
                "format": FORMAT,
                "device": self.device,
                "hardware": self.hardware,
                "rollout": self.rollout,
                "execution": self.execution,
                "attempt": self.attempt,
                "bundle": [asdict(each) for each in self.bundle],
                "nonce": self.nonce,
                "not_after": self.not_after_ms,
                "window": [list(span) for span in self.window],
                "idle_s": self.idle_s,
                "delay_s": self.delay_s,
                "trial_s": self.trial_s,
                "urgent": self.urgent,
            }
        )


def read_assignment(content: bytes) -> Assignment:
    """Return the assignment with this content; ContentError if it is none."""
    needed = (
        *("format", "device", "hardware", "rollout", "execution", "attempt", "bundle", "nonce"),
        *("not_after", "window", "idle_s", "delay_s", "trial_s", "urgent"),
    )
    data = document(content, MAX_ASSIGNMENT, needed=needed)
    given = list_of(data["bundle"], "bundle", 1, len(COMPONENTS))
    bundle = tuple(_item(each, f"bundle[{at}]") for at, each in enumerate(given))
    if len({each.component for each in bundle}) != len(bundle):
        bad("bundle", "a component stands there twice")
    spans = list_of(data["window"], "window", 0, MAX_WINDOWS)
    if not isinstance(data["urgent"], bool):
        bad("urgent", "expected true or false")
    return Assignment(
        device=_device(data["device"]),
        hardware=hardware_of(data["hardware"], "hardware"),
        rollout=ref_of(data["rollout"], "rollout"),
        execution=ref_of(data["execution"], "execution"),
        attempt=integer(data["attempt"], "attempt", 1, MAX_ATTEMPT),
        bundle=bundle,
        nonce=nonce_of(data["nonce"], "nonce"),
        not_after_ms=integer(data["not_after"], "not_after", 0, _MAX_UTC_MS),
        window=tuple(_span(each, f"window[{at}]") for at, each in enumerate(spans)),
        idle_s=integer(data["idle_s"], "idle_s", 0, MAX_IDLE_S),
        delay_s=integer(data["delay_s"], "delay_s", 0, MAX_DELAY_S),
        trial_s=integer(data["trial_s"], "trial_s", 1, MAX_TRIAL_S),
        urgent=data["urgent"],
    )


def _device(value: object) -> str:
    text = text_of(value, "device")
    try:
        return device_id(text)
    except ValueError as error:
        raise ContentError(Fault.BAD_FIELD, "device", str(error)) from error


def _item(value: object, where: str) -> Item:
    needed = ("component", "version", "floor", "target", "length", "sha256")
    data = fields_of(value, where, needed)
    return Item(
        component_of(data["component"], f"{where}.component"),
        version_of(data["version"], f"{where}.version"),
        version_of(data["floor"], f"{where}.floor"),
        text_of(data["target"], f"{where}.target"),
        integer(data["length"], f"{where}.length", 1, MAX_LENGTH),
        digest_of(data["sha256"], f"{where}.sha256"),
    )


def _span(value: object, where: str) -> tuple[int, int]:
    since, until = (integer(each, where, 0, _MAX_UTC_MS) for each in list_of(value, where, 2, 2))
    if until <= since:
        bad(where, "it ends before it begins")
    return since, until


def nonce_of(value: object, where: str) -> str:
    """Return a nonce; ContentError."""
    return matching(_NONCE, value, where, "32 hexadecimal digits")


def ref_of(value: object, where: str) -> str:
    """Return the reference of a rollout or an execution; ContentError."""
    return matching(_REF, value, where, "a reference such as exe-2b3c4d5e")


# -- the envelope ------------------------------------------------------------------------------


class Envelope(Sealed):
    """An assignment as it travels; nothing of it is checked yet."""

    __slots__ = ()
    KIND = "assignment"
    PREFIX = SIGNED


def read_envelope(content: bytes) -> Envelope:
    """Take an envelope apart; ContentError if it is none."""
    return envelope_of(parsed(content, MAX_ENVELOPE))


def envelope_of(value: object) -> Envelope:
    """Return the envelope that stands in an answer; ContentError if it is none."""
    found = Envelope.of(value)
    text, chain = len(found.text), len(found.chain)
    for where, size, most in (("assignment", text, MAX_ASSIGNMENT), ("chain", chain, MAX_ENVELOPE)):
        if size > most:
            raise ContentError(Fault.TOO_LARGE, where, f"{size} bytes; at most {most}")
    return found
