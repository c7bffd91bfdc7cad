"""A voucher: a technician's right to place devices at one site, signed beforehand for a dead spot.

Its text is `vsv1.<payload>.<signature>`, both in base64url: JSON {"v": its ref, "s": the site's
ref, "b": from, "e": until (Unix seconds)} and ES256 over `vsv1.<payload>` by a key of its own,
kept beside the authority. The phone can show it without us; we believe our own row. What is
checked, in this order; the same numbers stand in the code:

1. It has our form and is signed by our key.
2. It is in our books.
3. It held at the time in question.
4. It was not withdrawn.
5. Uses are left.

A check locks nothing; `spend` judges 4 and 5 again as it takes the use. So a voucher's row is
locked after the devices that it is used for, in the order that `server.audit.log` states.
"""

import base64
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from server.audit.log import record
from server.fleet.register import new_ref
from server.provisioning.refusals import refused

PREFIX = "vsv1."
LONGEST = timedelta(hours=24)
MOST_USES = 20
MAX_TEXT = 600
_KEY_FILE = "voucher.key"


@dataclass(frozen=True, slots=True)
class Voucher:
    """A voucher as our books have it."""

    row: int
    ref: str
    organisation: int
    user_id: int
    site: int
    created_at: datetime
    expires_at: datetime
    uses_left: int
    withdrawn_at: datetime | None


class VoucherSigner:
    """Signs vouchers, and knows its signature again."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def load(cls, pki: Path) -> "VoucherSigner":
        """Open the key beside the authority, made (mode 0600) when it is first asked for."""
        path = pki / _KEY_FILE
        if not path.exists():
            _make_key(path)
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{path} is not an elliptic-curve key")
        return cls(key)

    def sign(self, payload: bytes) -> str:
        """Return the text that carries `payload`."""
        body = PREFIX + _encoded(payload)
        r, s = decode_dss_signature(self._key.sign(body.encode(), ec.ECDSA(SHA256())))
        return f"{body}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def opened(self, text: str) -> bytes:
        """Return the payload of a text of ours; RefusedError (`voucher_bad`)."""
        body, _, mark = text.strip().rpartition(".")
        if len(text) > MAX_TEXT or not body.startswith(PREFIX):
            raise refused("voucher_bad")
        try:
            signature = _decoded(mark)
            halves = (int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
            self._key.public_key().verify(
                encode_dss_signature(*halves), body.encode(), ec.ECDSA(SHA256())
            )
            return _decoded(body.removeprefix(PREFIX))
        except (ValueError, InvalidSignature) as error:
            raise refused("voucher_bad") from error


async def make_voucher(
    connection: asyncpg.Connection,
    signer: VoucherSigner,
    *,
    user_id: int,
    site_ref: str,
    now: datetime,
    life: timedelta = LONGEST,
    uses: int = MOST_USES,
) -> tuple[Voucher, str]:
    """Make a voucher for a site and return it with its text, which is stored nowhere.

    The caller has checked that the user may provision there. On a connection of the desk. Raises
    RefusedError: `unknown_site`, `bad_voucher_terms`.
    """
    if not (timedelta() < life <= LONGEST and 0 < uses <= MOST_USES):
        raise refused("bad_voucher_terms")
    site = await connection.fetchrow(
        "select id, organisation_id from sites where ref = $1", site_ref
    )
    if site is None:
        raise refused("unknown_site")
    made = await connection.fetchrow(
        f"insert into vouchers (organisation_id, ref, user_id, site_id, created_at, expires_at, "  # noqa: S608
        f"uses_left) values ($1, $2, $3, $4, $5, $6, $7) returning {_COLUMNS}",
        site["organisation_id"],
        new_ref("voucher"),
        user_id,
        site["id"],
        now.replace(microsecond=0),
        (now + life).replace(microsecond=0),
        uses,
    )
    voucher = _voucher(made)
    await record(
        connection,
        actor=await actor_of(connection, user_id),
        act="voucher made",
        subject=voucher.ref,
        detail={"site": site_ref, "until": voucher.expires_at.isoformat(), "uses": uses},
        organisation=voucher.organisation,
        now=now,
    )
    return voucher, text_of(signer, voucher, site_ref=site_ref)


def text_of(signer: VoucherSigner, voucher: Voucher, *, site_ref: str) -> str:
    """Return the text of a voucher; asked again it says the same under another signature."""
    payload = {
        "v": voucher.ref,
        "s": site_ref,
        "b": int(voucher.created_at.timestamp()),
        "e": int(voucher.expires_at.timestamp()),
    }
    return signer.sign(json.dumps(payload, separators=(",", ":")).encode())


async def check_voucher(
    connection: asyncpg.Connection, signer: VoucherSigner, text: str, *, at: datetime
) -> Voucher:
    """Return the voucher if it held at `at`. RefusedError: `voucher_...`."""
    voucher = await known_voucher(connection, signer, text)  # 1, 2
    if not voucher.created_at <= at < voucher.expires_at:  # 3
        raise refused("voucher_expired")
    if voucher.withdrawn_at is not None and voucher.withdrawn_at <= at:  # 4
        raise refused("voucher_withdrawn")
    if voucher.uses_left == 0:  # 5
        raise refused("voucher_spent")
    return voucher


async def known_voucher(
    connection: asyncpg.Connection, signer: VoucherSigner, text: str
) -> Voucher:
    """Return whose voucher this is, whether or not it still holds. RefusedError `voucher_bad`."""
    try:
        ref = str(json.loads(signer.opened(text))["v"])  # 1
    except (ValueError, KeyError, TypeError) as error:
        raise refused("voucher_bad") from error
    row = await connection.fetchrow(
        f"select {_COLUMNS} from vouchers where ref = $1",  # noqa: S608
        ref,
    )
    if row is None:  # 2
        raise refused("voucher_bad")
    return _voucher(row)


async def spend(
    connection: asyncpg.Connection, voucher: Voucher, *, device: str, actor: str, now: datetime
) -> None:
    """Take one use from a voucher that was checked; its device is locked already.

    RefusedError (`voucher_spent`, `voucher_withdrawn`) if that has happened since.
    """
    left = await connection.fetchval(
        "update vouchers set uses_left = uses_left - 1 where id = $1 and uses_left > 0 "
        "and withdrawn_at is not distinct from $2 returning uses_left",
        voucher.row,
        voucher.withdrawn_at,
    )
    if left is None:
        left = await connection.fetchval(
            "select uses_left from vouchers where id = $1", voucher.row
        )
        raise refused("voucher_withdrawn" if left else "voucher_spent")
    await record(
        connection,
        actor=actor,
        act="voucher used",
        subject=voucher.ref,
        detail={"device": device, "uses_left": left},
        organisation=voucher.organisation,
        now=now,
    )


async def withdraw_voucher(
    connection: asyncpg.Connection, ref: str, *, actor: str, now: datetime
) -> bool:
    """End a voucher now; what was done before under it stays. False if there is none to end."""
    organisation = await connection.fetchval(
        "update vouchers set withdrawn_at = $2 where ref = $1 and withdrawn_at is null "
        "returning organisation_id",
        ref,
        now,
    )
    if organisation is None:
        return False
    await record(
        connection,
        actor=actor,
        act="voucher withdrawn",
        subject=ref,
        organisation=organisation,
        now=now,
    )
    return True


async def actor_of(connection: asyncpg.Connection, user_id: int) -> str:
    """Return how the audit names a user."""
    ref = await connection.fetchval("select ref from users where id = $1", user_id)
    return f"user {ref}"


_COLUMNS = (
    "id, ref, organisation_id, user_id, site_id, created_at, expires_at, uses_left, withdrawn_at"
)


def _voucher(row: asyncpg.Record) -> Voucher:
    return Voucher(
        row["id"],
        row["ref"],
        row["organisation_id"],
        row["user_id"],
        row["site_id"],
        row["created_at"],
        row["expires_at"],
        row["uses_left"],
        row["withdrawn_at"],
    )


def _make_key(path: Path) -> None:
    """Write a fresh key unless another process has been first; it is whole or not there."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.link(beside, path)  # fails if it exists, unlike a rename
    beside.unlink()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
