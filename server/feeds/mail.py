"""Mail handed in by SMTP: where, from whom, and what its refusals mean."""

import asyncio
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import parseaddr
from urllib.parse import unquote, urlsplit

import aiosmtplib

from server.config import Secret, SettingsError

TIMEOUT_S = 30.0
_SCHEMES = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PERMANENT = 500


@dataclass(frozen=True, slots=True)
class Smtp:
    """Where mail is handed in. `tls`: from the start; `starttls`: asked for, and demanded."""

    host: str
    port: int
    user: str
    password: Secret
    tls: bool
    starttls: bool


def smtp_of(url: str) -> Smtp:
    """Read smtp://, smtp+starttls:// or smtps://user:password@host:port. Raises SettingsError."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise SettingsError(
            "VESTIBULE_SMTP_URL: expected smtp://, smtp+starttls:// or smtps://host:port"
        )
    try:
        port = parts.port or _SCHEMES[parts.scheme]
    except ValueError as error:
        raise SettingsError("VESTIBULE_SMTP_URL: its port is none") from error
    if parts.password and parts.scheme == "smtp" and parts.hostname not in _LOOPBACK:
        raise SettingsError("VESTIBULE_SMTP_URL: no password goes to another host without TLS")
    return Smtp(
        parts.hostname,
        port,
        unquote(parts.username or ""),
        Secret(unquote(parts.password or "")),
        parts.scheme == "smtps",
        parts.scheme == "smtp+starttls",
    )


def sender_of(address: str) -> str:
    """Return the address that mail comes from. Raises SettingsError."""
    _, plain = parseaddr(address)
    if plain.count("@") != 1 or not address.isprintable():
        raise SettingsError(f"VESTIBULE_MAIL_FROM: expected an address, got {address!r}")
    return address


async def hand_in(smtp: Smtp, message: EmailMessage, *, timeout_s: float = TIMEOUT_S) -> None:
    """Hand a message in. Raises aiosmtplib.SMTPException, OSError, TimeoutError."""
    async with asyncio.timeout(timeout_s):
        await aiosmtplib.send(
            message,
            hostname=smtp.host,
            port=smtp.port,
            username=smtp.user or None,
            password=smtp.password.reveal() or None,
            use_tls=smtp.tls,
            start_tls=True if smtp.starttls else False if smtp.tls else None,
        )


def is_permanent(error: Exception) -> bool:
    """Whether trying again would change nothing: the server said so, of this message or reader."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return all(each.code >= _PERMANENT for each in error.recipients)
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return False  # the operator mends the settings, and what waits goes out
    return isinstance(error, aiosmtplib.SMTPResponseException) and error.code >= _PERMANENT


def words_of(error: Exception) -> str:
    """Return what went wrong in a line."""
    return (str(error) or type(error).__name__)[:200]
