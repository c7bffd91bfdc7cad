"""Releases: which code may exist, as it is approved offline and stands beside its target.

A release is one version of one component. In the signed metadata (TUF) its target's name is
`target_path`, and its target's `custom` is

    {"component": "agent", "version": "1.2.3", "floor": "1.1.0", "requires": "1.0.0" or null,
     "hardware": ["DC2", ...], "notes": "one line"}

`floor`: once the release is committed, a device takes no version below it any more. `requires`: the
least version from which it may be installed. `hardware`: the models that it is approved for. Its
bytes are an uncompressed tar.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from protocol.content import bad, fields_of, list_of, matching, text_of

Component = Literal["agent", "kiosk"]
COMPONENTS: Final[tuple[Component, ...]] = ("agent", "kiosk")
MAX_LENGTH = 256 << 20  # a kiosk's screen with its films; an agent has some 2 MB
MAX_MODELS = 64
MAX_HARDWARE = 64
_DIGEST = re.compile("[0-9a-f]{64}")
_NUMBER = r"(?:0|[1-9]\d{0,8})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Release:
    """One approved version of a component, as it stands beside its target in signed metadata.

    `floor`: once it is committed, a device takes no version below that any more. `requires`: the
    least version from which it may be installed. `hardware`: the models that it is approved for.
    """

    component: Component
    version: str
    floor: str
    requires: str | None
    hardware: tuple[str, ...]
    notes: str = ""

    def custom(self) -> dict[str, object]:
        """Return it as it is signed."""
        return {
            "component": self.component,
            "version": self.version,
            "floor": self.floor,
            "requires": self.requires,
            "hardware": list(self.hardware),
            "notes": self.notes,
        }


def read_release(value: object) -> Release:
    """Return the release that a target's `custom` says; ContentError if it is none."""
    data = fields_of(
        value, "custom", ("component", "version", "floor", "requires", "hardware", "notes")
    )
    version = version_of(data["version"], "version")
    floor = version_of(data["floor"], "floor")
    if version_key(floor) > version_key(version):
        bad("floor", f"{floor} is above the release's own version {version}")
    requires = None
    if data["requires"] is not None:
        requires = version_of(data["requires"], "requires")
        if version_key(requires) >= version_key(version):
            bad("requires", f"{requires} is not below the release's own version {version}")
    models = list_of(data["hardware"], "hardware", 1, MAX_MODELS)
    hardware = tuple(hardware_of(each, f"hardware[{at}]") for at, each in enumerate(models))
    if len(set(hardware)) != len(hardware):
        bad("hardware", "a model stands there twice")
    notes = data["notes"]
    if notes != "":
        notes = text_of(notes, "notes")
    component = component_of(data["component"], "component")
    return Release(component, version, floor, requires, hardware, str(notes))


def target_path(component: str, version: str, sha256: str) -> str:
    """Return the name of a release among the targets: it holds the digest of its bytes."""
    return f"{component}/{version}/{sha256}.tar"


def version_key(version: str) -> tuple[int, int, int]:
    """Return what versions are compared by; ContentError if it is none.

    Three numbers, without leading zeros: one version has one spelling, so one target's name.
    """
    if not _VERSION.fullmatch(version):
        bad("version", f"expected three numbers such as 1.2.3, got {version[:40]!r}")
    major, minor, patch = (int(part) for part in version.split("."))
    return major, minor, patch


def version_of(value: object, where: str) -> str:
    """Return a version; ContentError, where it stands."""
    text = text_of(value, where)
    if not _VERSION.fullmatch(text):
        bad(where, f"expected three numbers such as 1.2.3, got {text[:40]!r}")
    return text


def component_of(value: object, where: str) -> Component:
    """Return a component's name; ContentError."""
    found = next((name for name in COMPONENTS if name == value), None)
    if found is None:
        bad(where, f"expected one of {', '.join(COMPONENTS)}")
    return found


def hardware_of(value: object, where: str) -> str:
    """Return a model of hardware; ContentError."""
    text = text_of(value, where)
    if len(text) > MAX_HARDWARE:
        bad(where, f"expected at most {MAX_HARDWARE} characters")
    return text


def digest_of(value: object, where: str) -> str:
    """Return a SHA-256 in hex; ContentError."""
    return matching(_DIGEST, value, where, "64 hexadecimal digits")
