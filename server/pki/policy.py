"""Which certificate requests we sign. Pure.

What a device gets is ours to say, all but the key. So a request need not ask for anything, and one
that asks for more than it would get is refused: a device of ours would not, and whoever did should
hear so. Verification, in this order; the same numbers stand in the code:

1. It is of bounded size.
2. It is PKCS#10 in PEM, one block, and every part of it parses.
3. Its key is on P-256.
4. Its signature, with SHA-2, proves possession of the private key.
5. Its subject is empty, or one common name of a few plain characters.
6. It asks for no extension but those that a device gets anyway.
"""

import hashlib
import re
from dataclasses import InitVar, dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MAX_REQUEST_BYTES = 8192  # a P-256 request has some 400
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_BEGIN = b"-----BEGIN CERTIFICATE REQUEST-----"
_VERIFIED = object()


class Fault(StrEnum):
    """Why a request is refused."""

    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    WRONG_KEY = "wrong_key"
    NOT_PROVEN = "not_proven"
    BAD_NAME = "bad_name"
    ASKS_TOO_MUCH = "asks_too_much"


class RequestRefusedError(ValueError):
    """A certificate request that is not signed; `fault` says why."""

    def __init__(self, fault: Fault, message: str) -> None:
        self.fault = fault
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Proof:
    """The key that a request which we sign has proved, and the SHA-256 of it.

    Whoever has one need not ask again: only `proof` can make one, by what it alone holds.
    """

    key: ec.EllipticCurvePublicKey
    spki_sha256: bytes
    verified: InitVar[object]

    def __post_init__(self, verified: object) -> None:
        if verified is not _VERIFIED:
            raise TypeError("a proof is made of a request, by `proof`")


def device_uri(device: str) -> str:
    """Return the name of a device in its certificate."""
    return f"urn:vestibule:device:{device}"


def proof(csr_pem: bytes, *, device: str | None = None) -> Proof:
    """Return what a request that we sign proves. Raises RequestRefusedError.

    `device`: who asks, if it is known; its own name is then no foreign one.
    """
    if len(csr_pem) > MAX_REQUEST_BYTES:  # 1
        text = f"the request has {len(csr_pem)} bytes, over {MAX_REQUEST_BYTES}"
        raise RequestRefusedError(Fault.TOO_LARGE, text)
    request = _parsed(csr_pem)  # 2
    try:
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestRefusedError(Fault.WRONG_KEY, "the request's key is not on P-256") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestRefusedError(Fault.WRONG_KEY, "the request's key is not on P-256")  # 3
    _check_proof(request)  # 4
    _check_subject(request)  # 5
    _check_wishes(request, device=device)  # 6
    return Proof(key, spki_sha256(key), _VERIFIED)


def spki_sha256(key: CertificatePublicKeyTypes) -> bytes:
    """Return the SHA-256 of a public key, by which the register knows it."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()


def _parsed(csr_pem: bytes) -> x509.CertificateSigningRequest:
    unreadable = RequestRefusedError(Fault.UNREADABLE, "the request is no PKCS#10 in PEM")
    if csr_pem.count(b"-----BEGIN ") != 1 or not csr_pem.lstrip().startswith(_BEGIN):
        raise unreadable
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        _ = request.extensions, request.subject, request.attributes  # parsed when looked at
    except _UNREADABLE as error:
        raise unreadable from error
    return request


def _check_proof(request: x509.CertificateSigningRequest) -> None:
    try:
        algorithm = request.signature_hash_algorithm
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        text = "the request's signature is of an unknown kind"
        raise RequestRefusedError(Fault.NOT_PROVEN, text) from error
    if not isinstance(algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
        raise RequestRefusedError(Fault.NOT_PROVEN, "the request is not signed with SHA-2")
    if not proven:
        raise RequestRefusedError(Fault.NOT_PROVEN, "the request is not signed by its own key")


def _check_subject(request: x509.CertificateSigningRequest) -> None:
    names = list(request.subject)
    if not names:
        return
    value = names[0].value
    if (
        len(names) != 1
        or names[0].oid != NameOID.COMMON_NAME
        or not isinstance(value, str)
        or not _NAME.fullmatch(value)
    ):
        text = "the request's subject is not one common name of up to 64 plain characters"
        raise RequestRefusedError(Fault.BAD_NAME, text)


def _check_wishes(request: x509.CertificateSigningRequest, *, device: str | None) -> None:
    for extension in request.extensions:
        if not _granted(extension.value, device=device):
            text = f"the request asks for {extension.oid.dotted_string}, which a device never gets"
            raise RequestRefusedError(Fault.ASKS_TOO_MUCH, text)


def _granted(wish: x509.ExtensionType, *, device: str | None) -> bool:
    """Whether a device gets this anyway."""
    if isinstance(wish, x509.BasicConstraints):
        return not wish.ca
    if isinstance(wish, x509.ExtendedKeyUsage):
        return list(wish) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    if isinstance(wish, x509.KeyUsage):
        return wish == DEVICE_KEY_USAGE
    if isinstance(wish, x509.SubjectAlternativeName):
        return device is not None and list(wish) == [
            x509.UniformResourceIdentifier(device_uri(device))
        ]
    return False


DEVICE_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=False,
    crl_sign=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)
