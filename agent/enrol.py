"""First enrolment: a one-time claim, or the device's own label, becomes its certificate.

A claim token is `vst1.` and base64url (no padding) of JSON {"u": the server's https address,
"f": SHA-256 of the root certificate's DER in hex, "c": the secret}. A labelled device has address
and fingerprint from its factory (`factory`), and shows serial and set-up secret, perhaps with a
technician's voucher. The steps, numbered in the code; each may be cut by a power failure, and all
may then be repeated with the same claim or label:

1. Read the token: an https address, 64 hex digits, a secret.
2. Fetch `{u}/v1/trust` without trusting who answers. Keep the one certificate whose SHA-256 is
   `f`, in constant time; whatever else came with it is not believed.
3. Make a P-256 key, or take the one of an earlier attempt with this claim; synced to disk with
   mode 0600 before anything is asked, so that a claim always comes with one key. It never leaves.
   One that can't be read any more is replaced.
4. Post what is shown and a request for a certificate to `{u}/v1/enrol` over TLS that trusts only
   the certificate of step 2, its host name included. Secrets go to nobody else.
5. Check what came: the chain's first certificate holds our key, the bundle holds the root of step
   2, the names are well-formed.
6. Write key, chain and bundle, then `identity.json`, each synced; the last one completes it.

Who is refused is told what to do by a sentence, and the device by `then`: give up, wait, or ask a
person. `pause_s` is how long it waits before it asks again. A key that the server says can never be
used is forgotten, so that the next attempt makes another.
"""

import base64
import errno
import hashlib
import hmac
import http.client
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent import identity, keys
from agent.identity import DamagedError, Enrolled, NotEnrolledError
from agent.link import NO_CHECK_TIME
from protocol.identity import device_id

PREFIX = "vst1."
TIMEOUT_S = 20.0
MAX_ANSWER = 262_144  # a chain and a bundle have some 10 kB
MAX_TOKEN = 2_048
MAX_RETRY_S = 3_600.0
OWN_FOLDER = "Run as root or as the agent's user, or set VESTIBULE_AGENT_STATE to a folder of yours"
USELESS_KEY = frozenset({"key_in_use", "key_revoked"})

log = structlog.get_logger(__name__)


class TokenError(ValueError):
    """A token that can't be read, and what was expected."""


class Then(StrEnum):
    """What a device does after it was not enrolled; the server's word, or ours."""

    GIVE_UP = "give up"
    WAIT = "wait"
    ASK = "ask a person"


class EnrolError(RuntimeError):
    """Enrolment did not succeed; `then` says what may help, `code` is the server's."""

    def __init__(
        self, message: str, *, then: Then = Then.WAIT, code: str = "", retry_after_s: float = 0.0
    ) -> None:
        self.then = then
        self.code = code
        self.retry_after_s = retry_after_s
        super().__init__(message)

    @property
    def permanent(self) -> bool:
        """True if time alone does not help."""
        return self.then is not Then.WAIT


class StateError(EnrolError):
    """The state folder can't be written: nothing that the server could help."""

    def __init__(self, folder: Path, error: OSError) -> None:
        said = f"{folder} cannot be written: {error.strerror or error}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        super().__init__(said if full else f"{said}. {OWN_FOLDER}", then=Then.ASK)


class Ticket(Protocol):
    """What is shown, and to which server."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def root_sha256(self) -> bytes: ...
    @property
    def claim(self) -> str:
        """What may be remembered of it: it names the key that goes with it."""
        ...

    @property
    def body(self) -> dict[str, str]:
        """What the server is shown."""
        ...

    @property
    def once(self) -> bool:
        """True if it is good for one identity only."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """A claim token; its secret does not show."""

    host: str
    port: int
    root_sha256: bytes
    secret: str = field(repr=False)

    @property
    def claim(self) -> str:
        """What may be remembered of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    @property
    def body(self) -> dict[str, str]:
        """What the server is shown."""
        return {"claim": self.secret}

    @property
    def once(self) -> bool:
        """A claim makes one identity."""
        return True


@dataclass(frozen=True, slots=True)
class Labelled:
    """What stands on the device's label, and the server that its factory named."""

    host: str
    port: int
    root_sha256: bytes
    serial: str
    secret: str = field(repr=False)
    voucher: str = field(default="", repr=False)
    spot: str = ""

    @property
    def claim(self) -> str:
        """What may be remembered of the label; the same whatever voucher comes with it."""
        return hashlib.sha256(f"{self.serial} {self.secret}".encode()).hexdigest()

    @property
    def body(self) -> dict[str, str]:
        """What the server is shown."""
        shown = {"serial": self.serial, "secret": self.secret}
        more = {"voucher": self.voucher, "spot": self.spot}
        return shown | {name: text for name, text in more.items() if text}

    @property
    def once(self) -> bool:
        """A label is good for another key, if a technician says so."""
        return False


def parse_token(text: str) -> Token:
    """Read a claim token; TokenError says what is wrong with it."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TOKEN:
        raise TokenError(f"a claim token begins with {PREFIX!r}; was it copied whole?")
    body = text.removeprefix(PREFIX).rstrip("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", body):
        raise TokenError("a claim token holds only letters, digits, '-' and '_' after the dot")
    try:
        data = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        url, digest, secret = (str(data[name]) for name in ("u", "f", "c"))
    except (ValueError, KeyError, TypeError) as error:
        raise TokenError("the claim token is damaged; was it copied whole?") from error
    if not 1 <= len(secret) <= 256:
        raise TokenError("the claim's secret has 1 to 256 characters")
    return Token(*parse_server(url, digest), secret)


def parse_server(url: str, root_sha256: str) -> tuple[str, int, bytes]:
    """Return host, port and root fingerprint of the server that makes claims; TokenError."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:
        raise TokenError(f"the claim's address is https://host[:port], got {url[:80]!r}") from error
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.username:
        raise TokenError(f"the claim's address is https://host[:port], got {url[:80]!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", root_sha256):
        raise TokenError("the fingerprint of the claim's root has 64 hexadecimal digits")
    return parts.hostname, port, bytes.fromhex(root_sha256)


def enrol(text: str, *, state: Path, timeless: bool = False, again: bool = False) -> Enrolled:
    """Enrol by a claim token, or say that it is done; TokenError, EnrolError."""
    return enrol_by(parse_token(text), state=state, timeless=timeless, again=again)  # 1


def enrol_by(
    ticket: Ticket, *, state: Path, timeless: bool = False, again: bool = False
) -> Enrolled:
    """Enrol, or say that it is done; EnrolError, which is a StateError if it is our disk.

    `timeless`: there is no clock to hold certificate dates to. `again`: replace another identity.
    """
    pending = identity.files(state).pending_key(ticket.claim)
    try:
        done = identity.read(state)
    except NotEnrolledError:
        done = None
    if done is not None and done.claim == ticket.claim and (ticket.once or not again):
        with suppress(PermissionError):  # who may only read is told, too
            pending.unlink(missing_ok=True)  # the power failed just before
        return done
    if done is not None and not again:
        raise EnrolError(f"already enrolled as {done.device}; --again replaces it", then=Then.ASK)
    try:
        root = _pinned(_get_trust(ticket), ticket.root_sha256)  # 2
        with _kept(state):
            key = _key(pending)  # 3
        answer = _post(ticket, root=root, key=key, timeless=timeless)  # 4
    except (OSError, http.client.HTTPException) as error:
        raise EnrolError(f"no answer from https://{ticket.host}:{ticket.port}: {error}") from error
    except EnrolError as error:
        if error.code in USELESS_KEY:
            pending.unlink(missing_ok=True)
        raise
    enrolled, chain, bundle = _checked(answer, ticket=ticket, root=root, key=key)  # 5
    with _kept(state):
        identity.write(state, enrolled, key=pending, chain=chain, bundle=bundle)  # 6
        keep_root(state, answer.get("releases"))
    return enrolled


def keep_root(state: Path, said: object) -> None:
    """Keep the root of releases that an answer says, if it says one and there is none yet."""
    from agent.update.trust import install_root  # which imports, by `agent.content`, this module

    if not isinstance(said, str):
        return
    try:
        kept = install_root(state, said.encode())
    except ValueError as error:  # nothing is installed without one, and the rest goes on
        log.error("root of releases refused", error=str(error))
        return
    if kept:
        log.info("root of releases kept")


def pause_s(error: EnrolError, *, waited_s: float, dice: float) -> float:
    """Return how long to wait before asking again; `dice` is in [0, 1).

    At least what the server said, at first some ten seconds; a tenth of what was waited already, up
    to ten minutes; a minute at least if a person is needed. All by 0.75 to 1.25.
    """
    least = 60.0 if error.then is Then.ASK else 10.0
    return max(error.retry_after_s, least, min(waited_s / 10, 600.0)) * (0.75 + dice / 2)


def _get_trust(token: Ticket) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what comes is held to the fingerprint
    return _ask(token, context, "GET", "/v1/trust", None)


def _pinned(bundle: str, digest: bytes) -> x509.Certificate:
    try:
        certificates = x509.load_pem_x509_certificates(bundle.encode())
    except ValueError as error:
        raise EnrolError("the server's trust bundle can't be read") from error
    for certificate in certificates:
        if hmac.compare_digest(certificate.fingerprint(hashes.SHA256()), digest):
            return certificate
    raise EnrolError(
        "who answers is not the server that made this claim: no certificate has the claim's"
        " fingerprint. Check the address, and whether something intercepts TLS here."
    )


@contextmanager
def _kept(state: Path) -> Iterator[None]:
    """Do what needs the state folder; StateError."""
    try:
        yield
    except OSError as error:
        raise StateError(state, error) from error


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        return keys.read(path)
    except (FileNotFoundError, DamagedError):
        return keys.make(path)


def _post(
    token: Ticket, *, root: x509.Certificate, key: ec.EllipticCurvePrivateKey, timeless: bool
) -> dict[str, object]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=root.public_bytes(Encoding.PEM).decode())
    if timeless:
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    body = json.dumps({**token.body, "csr": keys.request(key)})
    try:
        answer = json.loads(_ask(token, context, "POST", "/v1/enrol", body))
    except ValueError as error:
        raise EnrolError("the server's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise EnrolError("the server's answer is not a JSON object")
    return answer


def _ask(token: Ticket, context: ssl.SSLContext, method: str, path: str, body: str | None) -> str:
    return ask(token.host, token.port, context, method=method, path=path, body=body)


@dataclass(frozen=True, slots=True)
class Answered:
    """What the server answered to one request, whatever its status."""

    status: int
    reason: str
    etag: str
    text: str


def ask(
    host: str,
    port: int,
    context: ssl.SSLContext,
    *,
    method: str,
    path: str,
    body: str | None,
    check: Callable[[bytes], None] | None = None,
) -> str:
    """Return what the server answers to one request on a connection of its own.

    `check` is given the server's certificate (DER) before anything is asked. Raises EnrolError if
    it refuses; OSError, HTTPException.
    """
    got = exchange(host, port, context, method=method, path=path, body=body, check=check)
    if got.status != 200:
        raise refused(got)
    return got.text


def exchange(
    host: str,
    port: int,
    context: ssl.SSLContext,
    *,
    method: str,
    path: str,
    body: str | bytes | None = None,
    etag: str = "",
    check: Callable[[bytes], None] | None = None,
) -> Answered:
    """Ask as `ask` does, perhaps only for what is not `etag`; EnrolError if the answer is endless.

    Raises OSError, HTTPException.
    """
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    try:
        connection.connect()
        if check is not None:
            check(connection.sock.getpeercert(binary_form=True) or b"")
        headers = {"Accept-Language": _language(os.environ)}
        kind = "application/json" if isinstance(body, str) else "application/octet-stream"
        headers |= {"Content-Type": kind} if body else {}
        headers |= {"If-None-Match": etag} if etag else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read(MAX_ANSWER + 1)
    finally:
        connection.close()
    if len(data) > MAX_ANSWER:
        raise EnrolError(f"the server's answer is longer than {MAX_ANSWER} bytes")
    given = response.getheader("ETag") or ""
    return Answered(response.status, response.reason, given, data.decode(errors="replace"))


def refused(got: Answered) -> EnrolError:
    """Return the refusal that an answer says; one without our form is judged by its status."""
    return _refused(got.status, got.text, got.reason)


def _refused(status: int, text: str, reason: str) -> EnrolError:
    """Return the refusal that an answer says; one without our form is judged by its status."""
    then = Then.ASK if 400 <= status < 500 and status not in {408, 429} else Then.WAIT
    try:
        problem = json.loads(text)
        code, detail = str(problem["code"]), str(problem["detail"])
        if problem.get("then") in set(Then):
            then = Then(problem["then"])
        retry_after_s = min(float(problem.get("retry_after", 0.0)), MAX_RETRY_S)
    except (ValueError, KeyError, TypeError):
        return EnrolError(f"the server refused: {reason} ({status})", then=then)
    return EnrolError(
        f"{detail} [{code}]", then=then, code=code, retry_after_s=max(0.0, retry_after_s)
    )


def _language(environ: Mapping[str, str]) -> str:
    """Return what Accept-Language says: the language that this system speaks."""
    named = environ.get("LC_ALL") or environ.get("LC_MESSAGES") or environ.get("LANG") or "en"
    found = re.match(r"[a-z]{2}\b|[a-z]{2}(?=_)", named)
    return found.group() if found else "en"


def _checked(
    answer: dict[str, object],
    *,
    ticket: Ticket,
    root: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
) -> tuple[Enrolled, str, str]:
    try:
        chain, bundle = str(answer["chain"]), str(answer["bundle"])
        ours = x509.load_pem_x509_certificates(chain.encode())[0].public_key()
        roots = x509.load_pem_x509_certificates(bundle.encode())
        enrolled = Enrolled(
            device_id(str(answer["device"])),
            "kiosk" if answer["kind"] == "kiosk" else "counter",
            str(answer["broker_host"]),
            int(str(answer["broker_port"])),
            ticket.claim,
            ticket.host,
            ticket.port,
            renew_after_ms=instant_ms(answer.get("renew_after")),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise EnrolError(f"the server's answer is malformed: {error!r}") from error
    if ours != key.public_key():
        raise EnrolError("the certificate that came is not for our key")
    if root not in roots:
        raise EnrolError("the bundle that came lacks the root that vouched for it")
    return enrolled, chain, bundle


def instant_ms(text: object) -> int:
    """Return an ISO time as UTC milliseconds, 0 for none; ValueError."""
    return round(datetime.fromisoformat(str(text)).timestamp() * 1000) if text else 0
