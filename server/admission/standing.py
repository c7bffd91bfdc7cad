"""Who belongs on the deny-list, by the database: never by what was ordered.

On it belongs
- a device that is not admitted, as long as a certificate of it might still open the door;
- a device that is admitted, but has no certificate that is valid now (it ended, or was revoked):
  resumed TLS sessions would let it in for ever. A renewed one takes it off again.

A certificate is spent once it has ended before the broker started: the broker refuses it, and
knows no TLS session from before. So the list does not grow for ever. A device that was never
enrolled needs no entry; one that was, and of whose certificates the database knows nothing, does.
"""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

_ROWS = """
select d.id, d.device, d.organisation_id, d.admitted,
  d.enrolled_at is not null as enrolled, c.signed, c.usable, c.spent
from devices d cross join lateral (
  select count(*) filter (where c.chain is not null) as signed,
    coalesce(bool_or(c.revoked_at is null and c.state in ('staged', 'active', 'retiring')
      and c.not_after > $1), false) as usable,
    coalesce(bool_and(coalesce(c.not_after < $2, false)) filter (where c.chain is not null), false)
      as spent
  from certificates c where c.device_id = d.id) c
"""
_SOME = f"{_ROWS} where d.id = any($3::int[])"
_ALL = f"""
{_ROWS} where not d.admitted or d.id in (
  select device_id from certificates where revoked_at is not null or not_after <= $1)
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Standing:
    """A device as it concerns the broker."""

    id: int
    device: str
    organisation_id: int
    admitted: bool
    enrolled: bool
    signed: int
    usable: bool
    spent: bool

    @property
    def denied(self) -> bool:
        """Whether it belongs on the deny-list."""
        if self.spent:
            return False
        if not self.admitted:
            return self.enrolled or self.signed > 0
        return self.lapsed

    @property
    def lapsed(self) -> bool:
        """Whether it is admitted, and has only certificates that are not valid any more."""
        return self.admitted and self.signed > 0 and not self.usable


async def of(
    connection: asyncpg.Connection,
    devices: list[int],
    *,
    now: datetime,
    broker_since: datetime | None,
) -> list[Standing]:
    """Return the standing of these devices."""
    rows = await connection.fetch(_SOME, now, broker_since, devices)
    return [Standing(**row) for row in rows]


async def lapsed_share(connection: asyncpg.Connection, *, now: datetime) -> float:
    """Return the share of the devices that are admitted and certified, whose certificates ended."""
    share: float = await connection.fetchval(
        "select coalesce(avg((not usable)::int), 0)::float8 from (select exists ("
        "select from certificates c where c.device_id = d.id and c.revoked_at is null "
        "and c.state in ('staged', 'active', 'retiring') and c.not_after > $1) as usable "
        "from devices d where d.admitted and exists (select from certificates c "
        "where c.device_id = d.id and c.chain is not null)) each",
        now,
    )
    return share


async def everyone(
    connection: asyncpg.Connection, *, now: datetime, broker_since: datetime | None
) -> list[Standing]:
    """Return the standing of every device that may belong on the list."""
    return [Standing(**row) for row in await connection.fetch(_ALL, now, broker_since)]
