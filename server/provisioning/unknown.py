"""Devices that nobody announced: who asked, how often, from where. Visible, counted, bounded.

At most 10,000 are kept. Once there are so many, a new one takes the place of the one that was seen
longest ago, but only one in ten does: a flood of made-up serials does not wash out the real ones at
once.
"""

import random
from datetime import datetime

import asyncpg

from protocol.label import LabelError, serial_number

MOST = 10_000
ONE_IN = 10


async def note(
    connection: asyncpg.Connection,
    serial: str,
    *,
    address: str,
    spki: bytes,
    now: datetime,
    most: int = MOST,
) -> None:
    """Note that a serial asked which is not on the allow-list; what is no serial is not kept."""
    try:
        if serial_number(serial) != serial:
            return
    except LabelError:
        return
    seen = await connection.execute(
        "update unknown_devices set last_seen = $2, times = times + 1, address = $3, "
        "spki_sha256 = $4 where serial = $1",
        *(serial, now, address, spki),
    )
    if seen != "UPDATE 0":
        return
    if await connection.fetchval("select count(*) from unknown_devices") >= most:
        if random.randrange(ONE_IN):  # noqa: S311
            return
        await connection.execute(
            "update unknown_devices set serial = $1, first_seen = $2, last_seen = $2, times = 1, "
            "address = $3, spki_sha256 = $4, dismissed_at = null where serial = "
            "(select serial from unknown_devices order by last_seen limit 1 for update skip locked)"
            " and not exists (select from unknown_devices where serial = $1)",
            *(serial, now, address, spki),
        )
        return
    await connection.execute(
        "insert into unknown_devices (serial, first_seen, last_seen, address, spki_sha256) "
        "values ($1, $2, $2, $3, $4) on conflict (serial) do update set last_seen = $2, "
        "times = unknown_devices.times + 1, address = $3, spki_sha256 = $4",
        *(serial, now, address, spki),
    )
