"""What of a device can be set from afar: one table, which server and agent both read.

Each setting is named as in the agent's own settings file. What the server does not set stays as
that file, or the default, has it. A setting that `cuts` may part the device from its server: it is
tried first, and goes back by itself unless the server was reached with it (`agent.desired`).
"""

import re
from dataclasses import dataclass
from enum import StrEnum

Value = int | str
KINDS = frozenset({"counter", "kiosk"})
MOST_ADDRESS = 260
_ADDRESS = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?):([0-9]{1,5})")


class Code(StrEnum):
    """Why a value is refused, by the server when it is written, or by the device."""

    UNKNOWN = "unknown_setting"
    WRONG_KIND = "wrong_kind"  # of device
    BAD_VALUE = "bad_value"
    DOES_NOT_FIT = "does_not_fit"  # what the device has of its own
    REVERTED = "reverted"  # the server could not be reached with it


class SettingError(ValueError):
    """A value that is none of this setting's."""

    def __init__(self, key: str, code: Code, message: str) -> None:
        self.key = key
        self.code = code
        super().__init__(f"{key}: {message}")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: what it takes, what it is unless said, and whom it is for.

    With `choices` one of these, else a whole number from `low` to `high`; an address is
    `host:port`, or empty: the one that the device was enrolled with.
    """

    key: str
    about: str
    default: Value
    unit: str = ""
    low: int = 0
    high: int = 0
    choices: tuple[Value, ...] = ()
    devices: frozenset[str] = KINDS
    cuts: bool = False
    since: str = "0.2"  # the agent's version

    def checked(self, value: object) -> Value:
        """Return a value as it is sent. Raises SettingError."""
        if isinstance(value, bool) or not isinstance(value, type(self.default)):
            wanted = "a whole number" if isinstance(self.default, int) else "text"
            raise SettingError(self.key, Code.BAD_VALUE, f"expected {wanted}")
        if isinstance(value, str) and not self.choices:
            address_of(self.key, value)
        elif self.choices and value not in self.choices:
            said = ", ".join(map(str, self.choices))
            raise SettingError(self.key, Code.BAD_VALUE, f"expected one of {said}; got {value!r}")
        elif isinstance(value, int) and not self.choices and not self.low <= value <= self.high:
            raise SettingError(
                self.key, Code.BAD_VALUE, f"expected {self.low} to {self.high}, got {value}"
            )
        assert isinstance(value, int | str)
        return value


TABLE = {
    each.key: each
    for each in (
        Setting("health_s", "time between two reports of its health", 900, "s", 60, 1_200),
        Setting("frame_s", "what one frame covers", 300, "s", choices=(60, 300, 900)),
        Setting(
            *("quiet_frame_s", "what a frame covers in which nobody came", 1_800, "s"),
            choices=(900, 1_800, 3_600),
        ),
        Setting("spread_s", "how far a fleet's messages are spread", 10, "s", 0, 60),
        Setting("retry_max_s", "longest wait between attempts to connect", 60, "s", 5, 120),
        Setting("keepalive_s", "how often a quiet connection is proved", 45, "s", 15, 120),
        Setting(
            *("log_level", "what the device's log says", "info"),
            choices=("debug", "info", "warning", "error"),
        ),
        Setting(
            *("broker", "where it connects to, as host:port; empty: as it was enrolled", ""),
            cuts=True,
        ),
    )
}


def checked(key: str, value: object, *, kind: str | None = None) -> Value:
    """Return a setting's value as it is sent; `kind` of device, None: any. Raises SettingError."""
    setting = TABLE.get(key)
    if setting is None:
        raise SettingError(key[:40], Code.UNKNOWN, f"known are {', '.join(TABLE)}")
    if kind is not None and kind not in setting.devices:
        raise SettingError(key, Code.WRONG_KIND, f"a {kind} has no such setting")
    return setting.checked(value)


def address_of(key: str, text: str) -> tuple[str, int] | None:
    """Return host and port, None for an empty text. Raises SettingError."""
    if not text:
        return None
    found = _ADDRESS.fullmatch(text) if len(text) <= MOST_ADDRESS else None
    if found is None or ".." in text or not 0 < int(found[2]) < 65_536:
        raise SettingError(key, Code.BAD_VALUE, "expected host:port, or nothing")
    return found[1], int(found[2])
