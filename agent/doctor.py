"""What may be wrong with this device, and what to do about it, before anyone drives there."""

import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from cryptography import x509

from agent import identity
from agent.clock import SystemClock
from agent.config import AgentConfig
from agent.identity import NotEnrolledError
from agent.link import tls_context
from agent.outbox import Outbox, OutboxBusyError
from agent.renewal import Step, found
from agent.settings import broker as in_force
from protocol.frame import Quality

SPARE_BYTES = 256 << 20
EXPIRY_WARNING = timedelta(days=14)
GRACE = timedelta(days=180)  # the server's: how long after its end a certificate can be renewed
TIMEOUT_S = 10.0
REFUSAL_S = 0.5


class State(Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result; `remedy` says what to do, and is empty if nothing need be done."""

    check: str
    state: State
    what: str
    remedy: str = ""


def examine(config: AgentConfig, *, without: Container[str] = ()) -> Iterator[Finding]:
    """Run all checks but some, in the order in which their remedies should be tried."""
    checks: tuple[tuple[str, Callable[[AgentConfig], Finding]], ...] = (
        ("identity", _identity),
        ("clock", _clock),
        ("disk", _disk),
        ("outbox", _outbox),
        ("certificate", _certificate),
        ("broker", _broker),
    )
    for name, check in checks:
        if name in without:
            continue
        try:
            yield check(config)
        except NotEnrolledError:
            if name == "identity":
                yield Finding(
                    name,
                    State.FAIL,
                    "this device is not enrolled",
                    "Make a claim on the server and run `vestibule-agent enrol TOKEN` here.",
                )
        except (OSError, ValueError) as error:
            yield Finding(name, State.FAIL, f"could not be checked: {error}", _ACCESS)


_AGAIN = (
    "make a new claim, stop the service (`systemctl stop vestibule-agent`), run `vestibule-agent"
    " enrol --again TOKEN`, and start it again."
)
_ACCESS = "Run the doctor as the agent's user or as root, and check the paths in agent.toml."


def _identity(config: AgentConfig) -> Finding:
    enrolled = identity.read(config.state)
    key = identity.files(config.state).key
    if stat.S_IMODE(key.stat().st_mode) & 0o077:
        return Finding(
            "identity",
            State.FAIL,
            f"{key} can be read by others",
            f"Run `chmod 600 {key}`; if somebody may have read it, {_AGAIN}",
        )
    return Finding("identity", State.OK, f"{enrolled.device}, a {enrolled.kind}")


def _clock(config: AgentConfig) -> Finding:
    quality, offset_ms = SystemClock().offset()
    if quality is Quality.SYNCED:
        return Finding("clock", State.OK, "disciplined by a time service")
    remedy = "Run `timedatectl set-ntp true`, and let UDP port 123 out of this network."
    if quality is Quality.ESTIMATED:
        now = datetime.fromtimestamp((SystemClock().monotonic_ms() + offset_ms) / 1000, UTC)
        return Finding("clock", State.WARN, f"plausible ({now:%F %R} UTC), not disciplined", remedy)
    what = (
        "implausible; counts are kept, and dated once the server or a time service tells the time"
    )
    return Finding("clock", State.WARN, what, remedy)


def _disk(config: AgentConfig) -> Finding:
    folder = config.state if config.state.exists() else config.state.parent
    free = shutil.disk_usage(folder).free
    what = f"{free >> 20:,} MB free at {folder}"
    if free < round(config.max_mb * (1 << 20)):
        return Finding(
            "disk", State.FAIL, what, "Free some space: a full outbox would not fit any more."
        )
    if free < SPARE_BYTES:
        return Finding("disk", State.WARN, what, "Free some space before the disk runs full.")
    return Finding("disk", State.OK, what)


def _outbox(config: AgentConfig) -> Finding:
    if not config.outbox.exists():
        return Finding("outbox", State.OK, "none yet; the agent makes it when it starts")
    broken = sorted(config.outbox.parent.glob(f"{config.outbox.name}.broken-*"))
    try:
        outbox = Outbox(config.outbox)
    except OutboxBusyError:
        return Finding("outbox", State.OK, "in use by the running agent (see `status`)")
    waiting, held = outbox.pending(), outbox.bytes_held
    outbox.close()
    what = f"{waiting} frames waiting, {held >> 10} kB"
    if broken:
        return Finding(
            "outbox",
            State.WARN,
            f"{what}; {broken[-1].name} was found malformed and moved aside",
            "Replace the SD card if this happens again; send the file to support, then delete it.",
        )
    if held > 0.8 * config.max_mb * (1 << 20):
        return Finding(
            "outbox",
            State.WARN,
            f"{what}: nearly full",
            "Get this device online; else its oldest minutes are merged into totals.",
        )
    return Finding("outbox", State.OK, what)


def _certificate(config: AgentConfig) -> Finding:
    enrolled = identity.read(config.state)
    files = identity.files(config.state)
    ends = x509.load_pem_x509_certificates(files.chain.read_bytes())[0].not_valid_after_utc
    left = ends - datetime.now(UTC)
    server = identity.server(enrolled, config.server)
    if server is None:
        return Finding(
            "certificate",
            State.WARN,
            f"valid until {ends:%F}, and it is not known where to renew it",
            "Set `server` to https://host:port, where this device was enrolled.",
        )
    where = f"https://{server[0]}:{server[1]}"
    if left <= timedelta(0):
        return Finding(
            "certificate",
            State.FAIL,
            f"ended on {ends:%F}",
            f"Check the clock first. The agent renews it by itself for {GRACE.days} days, once it"
            f" reaches {where}; after that, {_AGAIN}",
        )
    if left < EXPIRY_WARNING:
        return Finding(
            "certificate",
            State.WARN,
            f"valid until {ends:%F}, and not renewed yet",
            f"Let this device reach {where}; its log says why a renewal was put off.",
        )
    under_way = found(files)
    more = "" if under_way is Step.REST else f"; its renewal is under way ({under_way.value})"
    return Finding("certificate", State.OK, f"valid until {ends:%F}{more}")


def _broker(config: AgentConfig) -> Finding:
    link = identity.for_link(config.state)
    host, port = in_force(config.state) or (link.broker_host, link.broker_port)
    where = f"{host}:{port}"
    context = tls_context(link, timeless=SystemClock().offset()[0] is Quality.NONE)
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.settimeout(REFUSAL_S)
            with suppress(TimeoutError):  # under TLS 1.3 a refusal of us comes after the handshake
                secure.recv(1)
            return Finding("broker", State.OK, f"{where} answers with {secure.version()}")
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "broker",
            State.FAIL,
            f"{where} shows a certificate that we do not trust: {error.verify_message}",
            "Check the clock, and whether something in this network intercepts TLS.",
        )
    except ssl.SSLError as error:
        return Finding(
            "broker",
            State.FAIL,
            f"{where} refuses our certificate: {error.reason}",
            f"Ask the operator whether this device was revoked; else {_AGAIN}",
        )
    except OSError as error:
        return Finding(
            "broker",
            State.FAIL,
            f"{where} can't be reached: {error}",
            f"Let TCP port {port} out of this network to {host}, and check its name resolution.",
        )
