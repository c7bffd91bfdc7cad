"""Whether a device may install what it was assigned: the rules, and nothing but the rules.

Two must agree: the assignment, signed online by `svc-firmware` (what this device installs, now),
and the releases, signed offline by people (what may be installed at all). Held to these rules, in
this order; the same numbers stand in the code:

1. The envelope holds an assignment in its one form.
2. `svc-firmware`'s certificate, below a root that we hold, signed it (`agent.content.vouched`).
3. It names this device,
4. this device's hardware,
5. and the nonce that this device asked with last: what was said before is not said again.
6. The releases are signed, fresh, whole and no older than any that we have seen
   (`agent.update.trust`), and
7. the assignment has not ended, by the time that they tell or our own.

Then of each component of the bundle, in its order, or of none:

8. Its target is among the releases,
9. with the same length,
10. the same digest,
11. the same component,
12. version
13. and floor;
14. that release is approved for our hardware;
15. its version is not below the highest floor that we ever committed of this component, and
16. the version that runs here is not below the least from which it may be installed.

Who holds every online key (`svc-firmware`, timestamp, snapshot, the server, its database, the
broker) gets through 1 to 7, and from 8 on can only choose among what people approved for this
hardware and what is not below our floor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from protocol.assignment import Assignment, Item
from protocol.content import ContentError
from protocol.release import Release, version_key
from protocol.update import Class


class Fault(StrEnum):
    """Why nothing is installed."""

    MALFORMED = "malformed"
    UNTRUSTED = "untrusted"
    WRONG_DEVICE = "wrong_device"
    WRONG_HARDWARE = "wrong_hardware"
    WRONG_NONCE = "wrong_nonce"
    EXPIRED = "expired"
    # the releases' metadata
    NO_ROOT = "no_root"
    UNSIGNED = "unsigned"
    ROLLED_BACK = "rolled_back"
    STALE = "stale"
    MIXED = "mixed"
    BAD_METADATA = "bad_metadata"
    TIME_JUMP = "time_jump"
    ENDLESS = "endless"
    SLOW = "slow"
    UNREACHABLE = "unreachable"
    STORAGE = "storage"
    # the release of a component
    UNKNOWN_TARGET = "unknown_target"
    BAD_RELEASE = "bad_release"
    WRONG_LENGTH = "wrong_length"
    WRONG_DIGEST = "wrong_digest"
    WRONG_COMPONENT = "wrong_component"
    WRONG_VERSION = "wrong_version"
    WRONG_FLOOR = "wrong_floor"
    WRONG_MODEL = "wrong_model"
    BELOW_FLOOR = "below_floor"
    STEP_MISSING = "step_missing"
    INTERNAL = "internal"


_CLASSES = {
    **dict.fromkeys((Fault.UNREACHABLE, Fault.SLOW, Fault.STALE), Class.NETWORK),
    **dict.fromkeys((Fault.WRONG_HARDWARE, Fault.WRONG_MODEL), Class.HARDWARE),
    **dict.fromkeys((Fault.BELOW_FLOOR, Fault.STEP_MISSING), Class.REFUSED),
    Fault.STORAGE: Class.STORAGE,
    Fault.INTERNAL: Class.INTERNAL,
}


def class_of(fault: Fault) -> Class:
    """Return the kind of failure that a fault is, as it is reported."""
    return _CLASSES.get(fault, Class.TRUST)


class Refused(Exception):
    """Nothing is to be installed; `fault` says why, `where` in the assignment it stands."""

    def __init__(self, fault: Fault, where: str, message: str) -> None:
        self.fault = fault
        self.where = where
        self.message = message
        super().__init__(f"{where}: {message}" if where else message)


@dataclass(frozen=True, slots=True)
class Installed:
    """What a device has of a component: its version, and the highest floor that it committed."""

    version: str
    floor: str


@dataclass(frozen=True, slots=True)
class Approved:
    """A target of the releases, as it was signed offline."""

    length: int
    sha256: str
    release: Release


NOTHING = Installed("0.0.0", "0.0.0")


def addressed(assignment: Assignment, *, device: str, hardware: str, nonce: str) -> None:
    """Hold an assignment to rules 3 to 5. Raises Refused."""
    if assignment.device != device:  # 3
        _refuse(Fault.WRONG_DEVICE, "device", f"is {assignment.device}, we are {device}")
    if assignment.hardware != hardware:  # 4
        said = f"is {assignment.hardware!r}, ours is {hardware!r}"
        _refuse(Fault.WRONG_HARDWARE, "hardware", said)
    if assignment.nonce != nonce:  # 5
        _refuse(Fault.WRONG_NONCE, "nonce", "is not the one that we asked with last")


def agreed(
    assignment: Assignment,
    approved: Mapping[str, Approved],
    *,
    installed: Mapping[str, Installed],
    now_ms: int,
) -> None:
    """Hold an assignment to rules 7 to 16; `approved` by the target's name. Raises Refused."""
    if assignment.not_after_ms <= now_ms:  # 7
        ended = f"ended {(now_ms - assignment.not_after_ms) // 1000} s ago"
        _refuse(Fault.EXPIRED, "not_after", ended)
    for at, item in enumerate(assignment.bundle):
        where = f"bundle[{at}]"
        target = approved.get(item.target)
        if target is None:  # 8
            _refuse(Fault.UNKNOWN_TARGET, f"{where}.target", f"{item.target} is no release")
        _same(item, target, where)
        if assignment.hardware not in target.release.hardware:  # 14
            models = ", ".join(target.release.hardware)
            said = f"{item.component} {item.version} is approved for {models} alone"
            _refuse(Fault.WRONG_MODEL, where, said)
        _within(target.release, installed.get(item.component, NOTHING), where)


def _same(item: Item, target: Approved, where: str) -> None:
    release = target.release
    for fault, name, ours, signed in (
        (Fault.WRONG_LENGTH, "length", item.length, target.length),  # 9
        (Fault.WRONG_DIGEST, "sha256", item.sha256, target.sha256),  # 10
        (Fault.WRONG_COMPONENT, "component", item.component, release.component),  # 11
        (Fault.WRONG_VERSION, "version", item.version, release.version),  # 12
        (Fault.WRONG_FLOOR, "floor", item.floor, release.floor),  # 13
    ):
        if ours != signed:
            _refuse(fault, f"{where}.{name}", f"is {ours!r}, the release says {signed!r}")


def _within(release: Release, ours: Installed, where: str) -> None:
    if version_key(release.version) < version_key(ours.floor):  # 15
        said = f"{release.version} is below {ours.floor}, below which we never go again"
        _refuse(Fault.BELOW_FLOOR, f"{where}.version", said)
    if release.requires is not None and _key(ours.version) < version_key(release.requires):  # 16
        said = f"{release.version} is installed from {release.requires} on; {ours.version} runs"
        _refuse(Fault.STEP_MISSING, f"{where}.version", said)


def _key(version: str) -> tuple[int, int, int]:
    """Return a version's key; what runs here without having been a release comes before all."""
    try:
        return version_key(version)
    except ContentError:
        return (0, 0, 0)


def _refuse(fault: Fault, where: str, message: str) -> NoReturn:
    raise Refused(fault, where, message)
