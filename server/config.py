"""Settings: one frozen value, and the only place that reads the environment.

Every setting has an environment variable `VESTIBULE_<NAME>`; the defaults serve one machine.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class Secret(str):
    """A string that does not show itself in `repr`, logs or tracebacks' locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True, slots=True)
class Settings:
    """How one server process runs."""

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
    session_secret: Secret = field(default=Secret(""))
    roles: frozenset[str] = frozenset({"api", "ingest", "rollup"})

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read VESTIBULE_* variables; ValueError names each that is missing or malformed."""
        env = os.environ if environment is None else environment
        missing = [
            f"VESTIBULE_{name}"
            for name in ("DSN_INGEST", "DSN_API", "DSN_MAINT", "PKI")
            if not env.get(f"VESTIBULE_{name}")
        ]
        if missing:
            raise ValueError(f"not set: {', '.join(missing)}")

        def port(name: str, default: int) -> int:
            text = env.get(f"VESTIBULE_{name}", str(default))
            if not text.isdigit() or not 0 <= int(text) <= 65535:
                raise ValueError(f"VESTIBULE_{name}: expected a port, got {text!r}")
            return int(text)

        roles = frozenset(env.get("VESTIBULE_ROLES", "api,ingest,rollup").split(","))
        if unknown := roles - ROLES:
            raise ValueError(f"VESTIBULE_ROLES: {sorted(unknown)} are none of {sorted(ROLES)}")
        return cls(
            dsn_ingest=Secret(env["VESTIBULE_DSN_INGEST"]),
            dsn_api=Secret(env["VESTIBULE_DSN_API"]),
            dsn_maint=Secret(env["VESTIBULE_DSN_MAINT"]),
            pki=Path(env["VESTIBULE_PKI"]),
            broker_host=env.get("VESTIBULE_BROKER_HOST", "127.0.0.1"),
            broker_service_port=port("BROKER_SERVICE_PORT", 8884),
            device_broker_host=env.get("VESTIBULE_DEVICE_BROKER_HOST", "127.0.0.1"),
            device_broker_port=port("DEVICE_BROKER_PORT", 8883),
            http_host=env.get("VESTIBULE_HTTP_HOST", "127.0.0.1"),
            http_port=port("HTTP_PORT", 8080),
            https_host=env.get("VESTIBULE_HTTPS_HOST", "127.0.0.1"),
            https_port=port("HTTPS_PORT", 8443),
            public_url=env.get("VESTIBULE_PUBLIC_URL", ""),
            session_secret=Secret(env.get("VESTIBULE_SESSION_SECRET", "")),
            roles=roles,
        )


ROLES = frozenset({"api", "ingest", "rollup"})
