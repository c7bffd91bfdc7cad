"""The agent's settings: one TOML file, and `VESTIBULE_AGENT_<KEY>` in the environment over it.

Only what differs from the defaults need stand there; unknown keys are refused by name. Who the
device is, and what kind, comes from enrolment and not from here.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from agent.gpio import GpioButton, GpioLine, GpioSettings
from agent.recorder import Profile

DEFAULT_PATH = Path("/etc/vestibule/agent.toml")
PREFIX = "VESTIBULE_AGENT_"
Kind = Literal["counter", "kiosk"]


class ConfigError(ValueError):
    """A setting that can't be used, where it stands and what is expected."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All settings; times in seconds."""

    state: Path = Path("/var/lib/vestibule")
    socket: Path = Path("/run/vestibule/agent.sock")
    sensor: Literal["socket", "stdin", "gpio"] = "socket"
    lines: int = 2
    interval_s: int = 60
    frame_s: int = 300
    quiet_frame_s: int = 1_800
    flush_s: float = 1.0  # the longest that a count may exist in memory alone
    health_s: float = 900.0
    stall_s: float = 30.0
    spread_s: float = 10.0
    retry_min_s: float = 1.0
    retry_max_s: float = 60.0
    max_mb: float = 64.0
    questionnaire: str = "0" * 16  # hex of its hash until the screen says otherwise
    screen_port: int = 0  # of the kiosk's page, on this device alone; 0: no page
    screen_pin: str = field(default="", repr=False)  # 4 to 12 digits; empty: no staff menu
    reboot: str = ""  # the command that restarts this machine; empty: the agent restarts itself
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    server: str = ""  # where a labelled device enrols, such as https://fleet.example:8443
    root_sha256: str = ""  # of the fleet's root certificate, in hex
    serial: str = ""
    hardware: str = ""  # the model, as the fleet's register has it; empty: no update is installed
    setup_secret: str = field(default="", repr=False)  # both as on the label
    gpio: GpioSettings = field(default_factory=GpioSettings)

    @property
    def outbox(self) -> Path:
        """Where the outbox lies."""
        return self.state / "outbox.db"

    def profile(self, kind: Kind) -> Profile:
        """Return what a device of `kind` measures; ConfigError if that can't be framed."""
        try:
            return Profile(
                kind,
                lines=self.lines,
                interval_s=self.interval_s,
                frame_s=self.frame_s,
                quiet_frame_s=self.quiet_frame_s,
                questionnaire=bytes.fromhex(self.questionnaire),
                stall_s=self.stall_s,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error


def load(path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> AgentConfig:
    """Read the file (the default one may be absent), then the environment."""
    environ = os.environ if environ is None else environ
    path = path or _named(environ)
    config = AgentConfig()
    if path is not None:
        try:
            config = merge(config, tomllib.loads(path.read_text()), where=str(path))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
    named = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and name != f"{PREFIX}CONFIG"
    }
    return _checked(merge(config, named, where="environment"))


def _named(environ: Mapping[str, str]) -> Path | None:
    if named := environ.get(f"{PREFIX}CONFIG"):
        return Path(named)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def merge(config: AgentConfig, values: Mapping[str, object], *, where: str) -> AgentConfig:
    """Return `config` with `values` over it; ConfigError names what is unknown or malformed."""
    known = {entry.name for entry in fields(AgentConfig)}
    changed: dict[str, object] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown setting {name!r}; known: {', '.join(known)}")
        try:
            changed[name] = _gpio(value) if name == "gpio" else _like(getattr(config, name), value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {name}: {error}") from error
    return replace(config, **changed)  # type: ignore[arg-type]


def _like(default: object, value: object) -> object:
    """Return `value` (a string, if it came from the environment) as the default's type."""
    if isinstance(default, Path):
        return Path(str(value))
    if isinstance(default, float):
        return float(value)  # type: ignore[arg-type]
    if isinstance(default, int):
        if isinstance(value, str):
            return int(value)
        if type(value) is not int:
            raise TypeError(f"expected a whole number, got {value!r}")
        return value
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _gpio(value: object) -> GpioSettings:
    if not isinstance(value, dict):
        raise TypeError("expected a table; the environment can't hold it")
    table = dict(value)
    lines = tuple(GpioLine(**line) for line in table.pop("lines", ()))
    buttons = tuple(GpioButton(**button) for button in table.pop("buttons", ()))
    settings = GpioSettings(lines=lines, buttons=buttons, **table)
    _ = settings.pins
    return settings


def _checked(config: AgentConfig) -> AgentConfig:
    if not 0.05 <= config.flush_s <= 1.0:
        raise ConfigError(f"flush_s is 0.05 to 1 second, got {config.flush_s}")
    if config.sensor not in {"socket", "stdin", "gpio"}:
        raise ConfigError(f"sensor is socket, stdin or gpio, got {config.sensor!r}")
    if config.sensor == "gpio" and not (config.gpio.lines or config.gpio.buttons):
        raise ConfigError("sensor = 'gpio' needs a [gpio] table with lines or buttons")
    if config.log_level not in {"debug", "info", "warning", "error"}:
        raise ConfigError(f"log_level is debug, info, warning or error, got {config.log_level!r}")
    if not 0 <= config.screen_port <= 65_535:
        raise ConfigError(f"screen_port is 0 to 65535, got {config.screen_port}")
    if config.screen_pin and not re.fullmatch("[0-9]{4,12}", config.screen_pin):
        raise ConfigError("screen_pin has 4 to 12 digits")
    if len(config.hardware) > 64 or not config.hardware.isprintable():
        raise ConfigError("hardware is a model's name, at most 64 characters")
    config.profile("counter")
    return config
