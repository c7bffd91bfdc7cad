"""The app on a phone that shows codes (RFC 6238), written from the standard by itself."""

import hmac

STEP_S = 30


def code_at(secret: bytes, step: int) -> str:
    """Return the six digits of a step (30 seconds since 1970)."""
    digest = hmac.digest(secret, step.to_bytes(8), "sha1")
    at = digest[-1] & 0x0F
    return f"{(int.from_bytes(digest[at : at + 4]) & 0x7FFF_FFFF) % 1_000_000:06}"
