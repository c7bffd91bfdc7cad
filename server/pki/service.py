"""A service's signing key, beside the authority that certified it: `<name>.key` and `<name>.pem`.

Each kind of word that devices take from us has a service of its own, whose one name they look for:
who has taken over the one can say nothing of the other's. A signer is read anew for each use, so
a certificate that was replaced needs no restart.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.pki.files import AuthorityError
from server.pki.signer import sign_with


@dataclass(frozen=True, slots=True)
class ServiceSigner:
    """Signs as one service of ours; its chain hangs from a root that devices trust."""

    SERVICE: ClassVar[str] = ""
    """Which service, as `authority.CLIENTS` names it."""

    chain: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load(cls, pki: Path) -> Self:
        """Open the service's key beside the authority. Raises AuthorityError."""
        path = pki / f"{cls.SERVICE}.key"
        try:
            key = load_pem_private_key(path.read_bytes(), None)
            chain = path.with_suffix(".pem").read_text()
            leaf = x509.load_pem_x509_certificates(chain.encode())[0]
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityError(f"{path} cannot be opened: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != leaf.public_key():
            raise AuthorityError(f"{path} does not belong to its certificate")
        return cls(chain, key)

    def signed(self, message: bytes) -> bytes:
        """Return this service's signature over a message; the same one each time."""
        return sign_with(self.key, message)
