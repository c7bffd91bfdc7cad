"""Settings: one frozen value, and the only place that reads the environment.

Every setting has an environment variable `VESTIBULE_<NAME>`; the defaults serve one machine.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from server.errors import VestibuleError

ROLES = frozenset({"admission", "api", "firmware", "health", "ingest", "rollup"})


class SettingsError(VestibuleError, ValueError):
    """A setting is missing or malformed; the message names it."""

    code = "settings"


class Secret:
    """A text that neither `repr` nor formatting shows: it goes to a driver or a MAC by `reveal`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True, slots=True)
class Settings:
    """How one server process runs.

    `public_url` is where people reach the pages, `enrol_url` where devices reach the enrolment
    listener; empty: the listeners' own addresses. `smtp_url` is where mail is handed in, from
    `mail_from` (smtp://, smtp+starttls:// or smtps://user:password@host:port); empty: none is sent.
    """

    dsn_ingest: Secret
    dsn_api: Secret
    dsn_maint: Secret
    pki: Path
    broker_host: str = "127.0.0.1"
    broker_service_port: int = 8884
    device_broker_host: str = "127.0.0.1"
    device_broker_port: int = 8883
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    https_host: str = "127.0.0.1"
    https_port: int = 8443
    public_url: str = ""
    enrol_url: str = ""
    session_secret: Secret = field(default=Secret(""))
    dsn_desk: Secret = field(default=Secret(""))
    smtp_url: Secret = field(default=Secret(""))
    mail_from: str = ""
    firmware_folder: Path | None = None
    roles: frozenset[str] = ROLES

    @property
    def firmware(self) -> Path:
        """Where releases lie, and the server's keys for them: beside the authority, if not said."""
        return self.firmware_folder or self.pki.parent / "firmware"

    @property
    def pages_url(self) -> str:
        """Where people reach the pages."""
        return self.public_url or f"http://{self.http_host}:{self.http_port}"

    @property
    def enrolment_url(self) -> str:
        """Where devices enrol."""
        return self.enrol_url or f"https://{self.https_host}:{self.https_port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read VESTIBULE_* variables; SettingsError names each that is missing or malformed."""
        env = os.environ if environment is None else environment
        roles = read_roles(env.get("VESTIBULE_ROLES", ",".join(ROLES)))
        needed = ["DSN_INGEST", "DSN_API", "DSN_MAINT", "PKI"]
        needed += ["DSN_DESK", "SESSION_SECRET"] if "api" in roles else []
        missing = [f"VESTIBULE_{name}" for name in needed if not env.get(f"VESTIBULE_{name}")]
        if missing:
            raise SettingsError(f"not set: {', '.join(missing)}")

        return cls(
            dsn_ingest=Secret(env["VESTIBULE_DSN_INGEST"]),
            dsn_api=Secret(env["VESTIBULE_DSN_API"]),
            dsn_maint=Secret(env["VESTIBULE_DSN_MAINT"]),
            pki=Path(env["VESTIBULE_PKI"]),
            broker_host=env.get("VESTIBULE_BROKER_HOST", "127.0.0.1"),
            broker_service_port=_port(env, "BROKER_SERVICE_PORT", 8884),
            device_broker_host=env.get("VESTIBULE_DEVICE_BROKER_HOST", "127.0.0.1"),
            device_broker_port=_port(env, "DEVICE_BROKER_PORT", 8883),
            session_secret=Secret(env.get("VESTIBULE_SESSION_SECRET", "")),
            dsn_desk=Secret(env.get("VESTIBULE_DSN_DESK", "")),
            roles=roles,
        ).listening(env)

    def listening(self, environment: Mapping[str, str]) -> "Settings":
        """Return these, listening and reached where VESTIBULE_* variables say; SettingsError."""
        env = environment
        return replace(
            self,
            http_host=env.get("VESTIBULE_HTTP_HOST", self.http_host),
            http_port=_port(env, "HTTP_PORT", self.http_port),
            https_host=env.get("VESTIBULE_HTTPS_HOST", self.https_host),
            https_port=_port(env, "HTTPS_PORT", self.https_port),
            public_url=env.get("VESTIBULE_PUBLIC_URL", self.public_url),
            enrol_url=env.get("VESTIBULE_ENROL_URL", self.enrol_url),
            smtp_url=Secret(env.get("VESTIBULE_SMTP_URL", self.smtp_url.reveal())),
            mail_from=env.get("VESTIBULE_MAIL_FROM", self.mail_from),
            firmware_folder=_folder(env.get("VESTIBULE_FIRMWARE")) or self.firmware_folder,
        )


def _folder(text: str | None) -> Path | None:
    return Path(text) if text else None


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(f"VESTIBULE_{name}", str(default))
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise SettingsError(f"VESTIBULE_{name}: expected a port, got {text!r}")
    return int(text)


def read_roles(text: str) -> frozenset[str]:
    """Read a comma-separated list of roles; SettingsError names what is none."""
    roles = frozenset(part.strip() for part in text.split(","))
    if unknown := roles - ROLES:
        raise SettingsError(f"roles: {sorted(unknown)} are none of {sorted(ROLES)}")
    return roles
