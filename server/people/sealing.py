"""Keys for what the server alone may read or write, all out of `session_secret`.

Each purpose has a key of its own (HKDF-SHA-256), so that nothing sealed for one opens for another.
"""

import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.config import Secret, SettingsError

LEAST_SECRET = 16
_NONCE = 12


class Seal:
    """Seals by AES-256-GCM, and signs by HMAC-SHA-256."""

    def __init__(self, secret: Secret) -> None:
        if len(secret.reveal()) < LEAST_SECRET:
            raise SettingsError(f"VESTIBULE_SESSION_SECRET: {LEAST_SECRET} characters at least")
        self._secret = secret

    def seal(self, purpose: str, data: bytes, *, bound: bytes = b"") -> bytes:
        """Return `data` sealed; it opens only with the same purpose and the same `bound`."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self._key(purpose)).encrypt(nonce, data, bound)

    def unseal(self, purpose: str, sealed: bytes, *, bound: bytes = b"") -> bytes | None:
        """Return what was sealed, None if it is not ours or was changed."""
        try:
            nonce, text = sealed[:_NONCE], sealed[_NONCE:]
            return AESGCM(self._key(purpose)).decrypt(nonce, text, bound)
        except (InvalidTag, ValueError):
            return None

    def sign(self, purpose: str, data: bytes) -> bytes:
        return hmac.digest(self._key(purpose), data, hashlib.sha256)

    def _key(self, purpose: str) -> bytes:
        derive = HKDF(hashes.SHA256(), 32, salt=None, info=f"vestibule {purpose}".encode())
        return derive.derive(self._secret.reveal().encode())
