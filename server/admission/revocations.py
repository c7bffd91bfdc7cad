"""The revocation list in the authority's folder: what is on it, and when it is signed anew.

Invariants:
- What is installed has passed `server.pki.revocations`, and is installed whole or not at all.
- On it stands whatever the database says was revoked, and what it does not know: a serial that the
  list held before and that no row speaks of (the database was restored) stays on it.
The broker reads the list when it starts: Mosquitto before 2.0.23 cannot be told to do so while it
runs (`ops/services/broker.py`). Until then the deny-list alone keeps a revoked device out.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg

from server.errors import UnavailableError
from server.pki.authority import Authority, AuthorityError
from server.pki.files import write
from server.pki.revocations import CrlError

LIST = "device.crl"
KEPT = timedelta(days=30)  # on the list after its certificate has ended


class ListError(UnavailableError):
    """The revocation list cannot be signed or installed here."""

    code = "revocation_list"


def read(pki: Path) -> set[int]:
    """Return the serials on the list, none if it cannot be read: it is then built anew."""
    try:
        return Authority.load(pki).listed()
    except (CrlError, AuthorityError, OSError):
        return set()


async def wanted(
    connection: asyncpg.Connection, listed: Collection[int], *, now: datetime
) -> set[int]:
    """Return the serials that the list is to hold, of which it holds `listed`."""
    known = await connection.fetch(
        "select serial from certificates where serial = any($1::text[])",
        [f"{serial:x}" for serial in listed],
    )
    revoked = await connection.fetch(
        "select serial from certificates where revoked_at is not null "
        "and coalesce(not_after, revoked_at) > $1",
        now - KEPT,
    )
    unknown = set(listed) - {int(row["serial"], 16) for row in known}
    return unknown | {int(row["serial"], 16) for row in revoked}


def install(pki: Path, serials: Collection[int], *, now: datetime) -> bool:
    """Make the list hold just `serials` for days to come; False if it did. Raises ListError."""
    try:
        authority = Authority.load(pki)
        if _stands(authority, pki / LIST, set(serials), now=now):
            return False
        content = authority.crl(serials, now=now)
        authority.verify_crl(content, serials, now=now)
        write(pki / LIST, content)
    except (CrlError, AuthorityError, OSError) as error:
        raise ListError(f"the revocation list is not signed: {error}") from error
    return True


def _stands(authority: Authority, path: Path, serials: set[int], *, now: datetime) -> bool:
    try:
        authority.verify_crl(path.read_bytes(), serials, now=now)
        return authority.listed() == serials
    except (CrlError, OSError):
        return False
