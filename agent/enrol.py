"""First enrolment: a one-time claim becomes this device's certificate.

A claim token is `vst1.` and base64url (no padding) of JSON {"u": the server's https address,
"f": SHA-256 of the root certificate's DER in hex, "c": the secret}. The steps, numbered in the
code; each may be cut by a power failure, and all may then be repeated with the same claim:

1. Read the token: an https address, 64 hex digits, a secret.
2. Fetch `{u}/v1/trust` without trusting who answers. Keep the one certificate whose SHA-256 is
   `f`, in constant time; whatever else came with it is not believed.
3. Make a P-256 key, or take the one of an earlier attempt with this claim; synced to disk with
   mode 0600 before anything is asked, so that a claim always comes with one key. It never leaves.
4. Post {"claim", "csr"} to `{u}/v1/enrol` over TLS that trusts only the certificate of step 2, its
   host name included. The secret goes to nobody else.
5. Check what came: the chain's first certificate holds our key, the bundle holds the root of step
   2, the names are well-formed.
6. Write key, chain and bundle, then `identity.json`, each synced; the last one completes it.
"""

import base64
import hashlib
import hmac
import http.client
import json
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from agent import identity
from agent.identity import Enrolled, NotEnrolledError
from agent.link import NO_CHECK_TIME
from protocol.identity import device_id

PREFIX = "vst1."
TIMEOUT_S = 20.0
MAX_ANSWER = 262_144  # a chain and a bundle have some 10 kB
MAX_TOKEN = 2_048


class TokenError(ValueError):
    """A token that can't be read, and what was expected."""


class EnrolError(RuntimeError):
    """Enrolment did not succeed; `permanent` if the same claim will not do later either."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        self.permanent = permanent
        super().__init__(message)


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
        parts = urlsplit(url)
        port = parts.port or 443
    except (ValueError, KeyError, TypeError) as error:
        raise TokenError("the claim token is damaged; was it copied whole?") from error
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.username:
        raise TokenError(f"the claim's address is https://host[:port], got {url[:80]!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", digest) or not 1 <= len(secret) <= 256:
        raise TokenError("the claim's fingerprint has 64 hexadecimal digits, its secret 1 to 256")
    return Token(parts.hostname, port, bytes.fromhex(digest), secret)


def enrol(text: str, *, state: Path, timeless: bool = False, again: bool = False) -> Enrolled:
    """Enrol, or say that it is done; TokenError, EnrolError.

    `timeless`: there is no clock to hold certificate dates to. `again`: replace another identity.
    """
    token = parse_token(text)  # 1
    try:
        done = identity.read(state)
    except NotEnrolledError:
        done = None
    if done is not None and done.claim == token.claim:
        return done
    if done is not None and not again:
        raise EnrolError(f"already enrolled as {done.device}; --again replaces it", permanent=True)
    pending = identity.files(state).pending_key(token.claim)
    try:
        root = _pinned(_get_trust(token), token.root_sha256)  # 2
        key = _key(pending)  # 3
        answer = _post(token, root=root, key=key, timeless=timeless)  # 4
    except (OSError, http.client.HTTPException) as error:
        raise EnrolError(f"no answer from https://{token.host}:{token.port}: {error}") from error
    enrolled, chain, bundle = _checked(answer, token=token, root=root, key=key)  # 5
    identity.write(state, enrolled, key=pending, chain=chain, bundle=bundle)  # 6
    return enrolled


def _get_trust(token: Token) -> str:
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


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        key = load_pem_private_key(path.read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
    made = ec.generate_private_key(ec.SECP256R1())
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    identity.put(path, pem, mode=0o600)
    return made


def _post(
    token: Token, *, root: x509.Certificate, key: ec.EllipticCurvePrivateKey, timeless: bool
) -> dict[str, object]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=root.public_bytes(Encoding.PEM).decode())
    if timeless:
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    body = json.dumps({"claim": token.secret, "csr": pem})
    try:
        answer = json.loads(_ask(token, context, "POST", "/v1/enrol", body))
    except ValueError as error:
        raise EnrolError("the server's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise EnrolError("the server's answer is not a JSON object")
    return answer


def _ask(token: Token, context: ssl.SSLContext, method: str, path: str, body: str | None) -> str:
    connection = http.client.HTTPSConnection(
        token.host, token.port, timeout=TIMEOUT_S, context=context
    )
    try:
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read(MAX_ANSWER + 1)
    finally:
        connection.close()
    if len(data) > MAX_ANSWER:
        raise EnrolError(f"the server's answer is longer than {MAX_ANSWER} bytes")
    text = data.decode(errors="replace")
    if response.status != 200:
        raise EnrolError(
            f"the server refused: {_detail(text) or response.reason} ({response.status})",
            permanent=400 <= response.status < 500 and response.status not in {408, 429},
        )
    return text


def _detail(text: str) -> str:
    try:
        problem = json.loads(text)
        return f"{problem['detail']} [{problem['code']}]"
    except (ValueError, KeyError, TypeError):
        return ""


def _checked(
    answer: dict[str, object],
    *,
    token: Token,
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
            token.claim,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise EnrolError(f"the server's answer is malformed: {error!r}") from error
    if _spki(ours) != _spki(key.public_key()):
        raise EnrolError("the certificate that came is not for our key")
    if root not in roots:
        raise EnrolError("the bundle that came lacks the root that vouched for it")
    return enrolled, chain, bundle


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
