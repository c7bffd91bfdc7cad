"""Who signs: a certificate and a way to sign with its key, which a file or an HSM may hold.

Certificates and lists are built here without their signer's key: their content is signed through
`Signer.sign`, put together with the signature, and checked before anyone sees it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

Sign = Callable[[bytes], bytes]
"""Returns the DER signature, ECDSA with SHA-256 on P-256, of what it is given."""


class Signer(Protocol):
    """An authority: its certificate, and its key wherever that is."""

    @property
    def certificate(self) -> x509.Certificate: ...

    def sign(self, content: bytes) -> bytes:
        """Return the DER signature, ECDSA with SHA-256 on P-256, of `content`."""
        ...


class SigningError(Exception):
    """What came back from the signer is not its signature; nothing was issued."""


@dataclass(frozen=True, slots=True)
class FileSigner:
    """An authority whose key lies in a file. The same content gets the same signature."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, content: bytes) -> bytes:
        return sign_with(self.key, content)


def sign_with(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """Return the key's signature of `content`, deterministic (RFC 6979)."""
    return key.sign(content, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def finish_certificate(
    builder: x509.CertificateBuilder, *, sign: Sign, key: ec.EllipticCurvePublicKey
) -> x509.Certificate:
    """Return the built certificate, signed; `key` is the signer's. Raises SigningError."""
    content = builder.sign(_stand_in(), hashes.SHA256()).tbs_certificate_bytes
    return x509.load_der_x509_certificate(_signed(content, sign=sign, key=key))


def finish_list(
    builder: x509.CertificateRevocationListBuilder, *, sign: Sign, key: ec.EllipticCurvePublicKey
) -> x509.CertificateRevocationList:
    """Return the built revocation list, signed; `key` is the signer's. Raises SigningError."""
    content = builder.sign(_stand_in(), hashes.SHA256()).tbs_certlist_bytes
    return x509.load_der_x509_crl(_signed(content, sign=sign, key=key))


@cache
def _stand_in() -> ec.EllipticCurvePrivateKey:
    """Signs what is built, only for its content: that names the algorithm, and no key."""
    return ec.generate_private_key(ec.SECP256R1())


def _signed(content: bytes, *, sign: Sign, key: ec.EllipticCurvePublicKey) -> bytes:
    """Return DER of content, algorithm and signature, as certificates and lists both have it."""
    signature = sign(content)
    try:
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise SigningError("the signer returned a signature that is not its own") from error
    return _der(0x30, content + _ECDSA_WITH_SHA256 + _der(0x03, b"\x00" + signature))


_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")  # RFC 5758, 3.2


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    digits = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(digits)]) + digits + content
