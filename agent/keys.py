"""A device's keys: P-256, made here and kept with mode 0600; what is asked and said of them."""

import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
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
from agent.identity import DamagedError


def make(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a key, synced to `path` before it is returned."""
    made = ec.generate_private_key(ec.SECP256R1())
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    identity.put(path, pem, mode=0o600)
    return made


def read(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key at `path`; DamagedError if it is not one of ours, OSError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DamagedError(f"{path.name} can't be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DamagedError(f"{path.name} is not our key")
    return key


def request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a request for a certificate (PEM); it names nobody, the server knows who asks."""
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def spki_sha256(certificate: x509.Certificate) -> str:
    """Return the SHA-256, in hex, of a certificate's public key."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
