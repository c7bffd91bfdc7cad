"""A pop-up shop in the demo's database, of an organisation of its own, with nine weeks behind it.

It never closes and lies where it is daytime, so that whenever the tests run its day has something
to compare; its counter is real to the server in all but its link: the rows are as ingest would have
written them.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg
from playwright.sync_api import Page

from ops.deployment import embedded
from ops.services.stack import Stack
from tests.browser.conftest import Demo
from tests.browser.test_signin import accept, invited

ORGANISATION, SITE, NAME = "org-popup", "site-popup", "Strandboden"
WEEKS = 9
AN_HOUR = 24  # visits
ZONES = ("Europe/Stockholm", "Pacific/Honolulu")  # it is never night in both


def manager_of(demo: Demo, page: Page, email: str) -> Page:
    """Make the shop if there is none, invite its manager and let them in."""
    _made(demo)
    link = invited(demo, email, "--role", "store-manager", "--site", SITE)
    accept(page, link, "Bo")
    return page


def analyst_of(demo: Demo, page: Page, email: str) -> Page:
    """Make the shop if there is none, invite who reads all of its organisation's numbers."""
    _made(demo)
    link = invited(demo, email, "--role", "analyst", "--organisation", ORGANISATION)
    accept(page, link, "Ada")
    return page


def _made(demo: Demo) -> None:
    dsn = embedded(Stack(demo.root), start=False).owner_dsn.reveal()
    with ThreadPoolExecutor(1) as thread:  # Playwright holds this one's loop
        thread.submit(asyncio.run, _make(dsn)).result(120)


async def _make(dsn: str) -> None:
    owner = await asyncpg.connect(dsn)
    try:
        async with owner.transaction():
            if not await owner.fetchval("select count(*) from sites where ref = $1", SITE):
                await _fill(owner, datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
    finally:
        await owner.close()


async def _fill(owner: asyncpg.Connection, hour: datetime) -> None:
    organisation = await owner.fetchval(
        "insert into organisations (ref, name) values ($1, 'Strand AB') returning id", ORGANISATION
    )
    local, *_ = [at for at in map(hour.astimezone, map(ZoneInfo, ZONES)) if 6 <= at.hour < 22]
    today = local.date()  # of the shop: in Honolulu it may still be yesterday
    begins = today - timedelta(weeks=WEEKS)
    site = await owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone, currency, opens_on, closes_on) "
        "values ($1, $2, $3, $6, 'SEK', $4, $5) returning id",
        *(organisation, SITE, NAME, begins, today + timedelta(days=5), str(local.tzinfo)),
    )
    counter, terminal = [
        await owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, $3, $4, $5) returning id",
            *(organisation, site, f"spot-popup-{kind}", name, kind),
        )
        for kind, name in (("counter", "Main door"), ("kiosk", "By the exit"))
    ]
    device = await owner.fetchval(
        "insert into devices (organisation_id, device, kind, state) "
        "values ($1, 'dc-popup2345678', 'counter', 'in service') returning id",
        organisation,
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange(null, null))",
        *(organisation, device, counter),
    )
    await owner.execute(
        "insert into boots (device_id, boot_id, ordinal, stored_to, last_stored) "
        "values ($1, 77, 1, now(), now())",
        device,
    )
    first = datetime(begins.year, begins.month, begins.day, tzinfo=UTC) - timedelta(days=1)
    await owner.execute(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, resolution_s) "
        "select bucket, $2, $1, $3, $3, 60 from generate_series($4::timestamptz, $5::timestamptz, "
        "interval '15 minutes') bucket",
        *(counter, (1 << 60) - 1, AN_HOUR // 4, first, datetime.now(UTC) - timedelta(minutes=15)),
    )
    await owner.execute(
        "insert into rollup_dirty (spots, buckets) select array_agg(spot), array_agg(bucket) "
        "from rollup_15m where spot = $1",
        counter,
    )
    await _pressed(owner, organisation, terminal, hour)
    await _waiting(owner, organisation, site, terminal, hour, today)


async def _pressed(owner: asyncpg.Connection, organisation: int, spot: int, hour: datetime) -> None:
    """Let forty have pressed a smiley in this hour."""
    await owner.execute(
        "insert into questionnaires (organisation_id, hash, name, definition) "
        'values ($1, 7878, \'Smileys\', \'{"questions": [{"kind": "smiley4"}]}\')',
        organisation,
    )
    await owner.executemany(
        "insert into presses_15m (bucket, questionnaire, spot, presses, question, answer) "
        "values ($1, 7878, $2, $3, 0, $4)",
        [(hour, spot, presses, answer) for answer, presses in enumerate((28, 6, 2, 4))],
    )
    await owner.execute(
        "insert into rollup_15m (bucket, observed, spot, resolution_s) values ($1, $2, $3, 60)",
        *(hour, (1 << 60) - 1, spot),
    )
    await owner.execute(
        "insert into rollup_dirty (spots, buckets) values (array[$1::int], array[$2::timestamptz])",
        *(spot, hour),
    )


async def _waiting(
    owner: asyncpg.Connection,
    organisation: int,
    site: int,
    spot: int,
    hour: datetime,
    today: date,
) -> None:
    """Let there be an alert, an action that is due, a campaign that was paid, and a roster."""
    await owner.execute(
        "insert into opinion_alerts (organisation_id, ref, site_id, spot_id, cause, questionnaire, "
        "question, raised_at, since, n, bad, expected, p, false_alarms_per_week, filter_version) "
        "values ($1, 'alert-popup', $2, $3, 'dissatisfaction', 0, 0, $4, $4, 9, 8, 1, 0, 0.5, 1)",
        *(organisation, site, spot, hour),
    )
    await owner.execute(
        "with made as (insert into touchpoints (organisation_id, ref, name) "
        "values ($1, 'touchpoint-popup', 'Check-out') returning id) "
        "insert into actions (organisation_id, ref, site_id, touchpoint_id, title, owner, due_on, "
        "remeasure_on, made_at) select $1, 'action-popup', $2, id, 'Open the second till', 'Bo', "
        "$3, $4, $5 from made",
        *(organisation, site, today, today + timedelta(days=30), hour),
    )
    await owner.execute(
        "with made as (insert into campaigns (organisation_id, campaign_ref, name, channel, "
        "from_day, until_day, cost, currency) values ($1, 'flyers', 'Flyers', 'print', $3, $3, "
        "50000, 'SEK') returning id) insert into campaign_sites (organisation_id, campaign_id, "
        "site_id) select $1, id, $2 from made",
        *(organisation, site, today - timedelta(days=20)),
    )
    await owner.executemany(
        "insert into staff_shifts (organisation_id, site_id, shift_ref, role, starts_at, ends_at) "
        "values ($1, $2, $3, 'till', $4, $5)",
        [
            (organisation, site, ref, hour - timedelta(hours=2), hour + timedelta(hours=9))
            for ref in ("1", "2")
        ],
    )
