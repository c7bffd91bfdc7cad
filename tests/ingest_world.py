"""A fleet for ingest's tests and benchmarks: registered devices, and agents that make frames."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from ops.services.stack import Stack
from protocol.counter import Counts, Line, encode_counter
from protocol.frame import Quality, Span
from protocol.gap import Cause, Gap, encode_gap
from protocol.health import Metrics, encode_health
from protocol.identity import DeviceId
from protocol.kiosk import Press, Presses, encode_kiosk
from protocol.session import Answer, HeldBoot, Hello, Receipt, decode_downlink, encode_hello
from protocol.topics import Leg, topic
from server.clock import ManualClock, at
from server.db.migrate import SchemaMismatch, check_schema, migrate
from server.ingest.batch import Batch
from server.ingest.mqtt import Inbound
from server.ingest.pipeline import Done, Pipeline
from server.ingest.places import Places
from server.ingest.rebuild import Change, rebuild

NOON = 1_767_268_800_000  # 2026-01-01T12:00:00Z
MINUTE = 60_000
DAY = 86_400_000
WRAP = 1 << 32


@dataclass(slots=True)
class Agent:
    """Makes the frames of one boot of a device; monotonic zero is `booted_ms`."""

    device: DeviceId
    boot_id: int
    ordinal: int = 1
    seq: int = 0
    booted_ms: int = NOON
    now_ms: int = NOON
    quality: Quality = Quality.SYNCED
    lines: int = 2
    totals: list[int] = field(default_factory=lambda: [0] * 8)
    answers: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def up(self) -> bytes:
        """Its topic."""
        return topic(self.device, Leg.UP).encode()

    def span(self, length_ms: int) -> Span:
        """Return the span from now on, and let its time pass."""
        offset = self.booted_ms if self.quality is not Quality.NONE else 0
        span = Span(self.now_ms - self.booted_ms, length_ms, offset, self.quality)
        self.now_ms += length_ms
        return span

    def counter(
        self, counts: Sequence[Sequence[int]] | None = None, *, minutes: int = 5, lie: int = 0
    ) -> bytes:
        """Return the next counter frame: `counts` by line, in, out by minute; `lie` in a total."""
        lines = []
        given = counts or [[1] * (2 * minutes)] * self.lines
        for number, values in enumerate(given):
            self.totals[2 * number] = (self.totals[2 * number] + sum(values[::2]) + lie) % WRAP
            self.totals[2 * number + 1] = (self.totals[2 * number + 1] + sum(values[1::2])) % WRAP
            lines.append(
                Line(number, self.totals[2 * number], self.totals[2 * number + 1], tuple(values))
            )
        span = self.span(len(given[0]) // 2 * MINUTE)
        frame = encode_counter(
            Counts(span, 60, tuple(lines)),
            boot_id=self.boot_id,
            seq=self.seq,
            ordinal=self.ordinal,
        )
        self.seq += 1
        return frame

    def kiosk(self, presses: Sequence[Press], *, minutes: int = 5) -> bytes:
        """Return the next kiosk frame."""
        for press in presses:
            key = (press.question, press.answer)
            self.answers[key] = self.answers.get(key, 0) + 1
        frame = encode_kiosk(
            Presses(
                self.span(minutes * MINUTE),
                b"question",
                tuple((q, a, total) for (q, a), total in sorted(self.answers.items())),
                tuple(presses),
            ),
            boot_id=self.boot_id,
            seq=self.seq,
            ordinal=self.ordinal,
        )
        self.seq += 1
        return frame

    def health(self, values: dict[str, float]) -> bytes:
        """Return the next health frame."""
        frame = encode_health(
            Metrics(self.span(MINUTE), values),
            boot_id=self.boot_id,
            seq=self.seq,
            ordinal=self.ordinal,
        )
        self.seq += 1
        return frame

    def gap(self, to_seq: int, *, minutes: int, people: int = 0) -> bytes:
        """Return a gap frame from the next number to `to_seq`, over `people` in on line 0."""
        self.totals[0] += people
        span = self.span(minutes * MINUTE)
        lines = tuple(
            (line, self.totals[2 * line], self.totals[2 * line + 1]) for line in range(self.lines)
        )
        frame = encode_gap(
            Gap(span, to_seq, Cause.THINNED, lines),
            boot_id=self.boot_id,
            seq=self.seq,
            ordinal=self.ordinal,
        )
        self.seq = to_seq + 1
        return frame

    def hello(
        self,
        *,
        nonce: int = 7,
        name: str = "test",
        boots: Sequence[HeldBoot] = (),
        versions: tuple[int, ...] = (1,),
    ) -> bytes:
        """Return a greeting that lists `boots`, or this one alone."""
        own = HeldBoot(self.boot_id, self.ordinal, 0, self.seq, self.quality, self.booted_ms)
        span = Span(0, 0, self.booted_ms, self.quality)
        return encode_hello(
            Hello(nonce, versions, name, span, tuple(boots) or (own,)),
            boot_id=self.boot_id,
            ordinal=self.ordinal,
        )


@dataclass(frozen=True, slots=True)
class Fleet:
    """What was registered: devices and the spots they stand at, in the same order."""

    organisation: int
    devices: tuple[DeviceId, ...]
    rows: tuple[int, ...]
    spots: tuple[int, ...]

    def agent(self, at_: int = 0, *, rng: random.Random | None = None, **settings: object) -> Agent:
        """Return an agent of a fresh boot of the device."""
        boot_id = (rng or random.Random(at_ + 1)).getrandbits(64)
        return Agent(self.devices[at_], boot_id, **settings)  # type: ignore[arg-type]


async def register(
    owner: asyncpg.Connection,
    count: int,
    *,
    kind: str = "counter",
    since_ms: int = NOON - DAY,
    prefix: str = "dc-test",
    sites: Sequence[int] = (),
) -> Fleet:
    """Register `count` devices, each assigned to a spot of its own since then.

    `sites`: how many stand at each site, one after the other; else all stand at one.
    """
    organisation = await owner.fetchval(
        "insert into organisations (ref, name) values ($1, 'Test') "
        "on conflict (ref) do update set name = 'Test' returning id",
        prefix,
    )
    refs = [f"site-{prefix}", *(f"site-{prefix}-{number}" for number in range(1, len(sites)))]
    found = await owner.fetch(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "select $1, r, 'Test', 'Europe/Stockholm' from unnest($2::text[]) r "
        "on conflict (ref) do update set name = 'Test' returning id, ref",
        organisation,
        refs,
    )
    site_of = {row["ref"]: row["id"] for row in found}
    standing = [
        site_of[ref] for ref, size in zip(refs, sites or [count], strict=True) for _ in range(size)
    ]
    assert len(standing) == count, "the sites hold another number of devices"
    names = [f"{prefix}-{i:06d}" for i in range(count)]
    spots = await owner.fetch(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "select $1, s, 'spot-' || n, n, $4 from unnest($2::int[], $3::text[]) v (s, n) "
        "returning id, ref",
        organisation,
        standing,
        names,
        kind,
    )
    devices = await owner.fetch(
        "insert into devices (organisation_id, device, kind, state, enrolled_at) "
        "select $1, n, $3, 'in service', $4 from unnest($2::text[]) n returning id, device",
        organisation,
        names,
        kind,
        at(since_ms),
    )
    spot_of = {row["ref"].removeprefix("spot-"): row["id"] for row in spots}
    row_of = {row["device"]: row["id"] for row in devices}
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "select $1, d, s, tstzrange($4, null) from unnest($2::int[], $3::int[]) v (d, s)",
        organisation,
        [row_of[name] for name in names],
        [spot_of[name] for name in names],
        at(since_ms),
    )
    return Fleet(
        organisation,
        tuple(DeviceId(name) for name in names),
        tuple(row_of[name] for name in names),
        tuple(spot_of[name] for name in names),
    )


@dataclass(slots=True)
class Ingesting:
    """A pipeline without a broker: what is given is stored, what would be sent is returned."""

    pipeline: Pipeline
    places: Places
    clock: ManualClock

    async def take(self, *frames: tuple[Agent, bytes]) -> Done:
        """Store frames that came on their agents' own topics, as one batch."""
        messages: list[Inbound] = [
            (agent.up, frame, number) for number, (agent, frame) in enumerate(frames, 1)
        ]
        return await self.take_messages(messages)

    async def take_messages(self, messages: Sequence[Inbound]) -> Done:
        """Store messages as one batch."""
        batch: Batch = await self.pipeline.prepare(messages)
        return await self.pipeline.store(batch)


def said(done: Done) -> list[Receipt | Answer]:
    """Return what a stored batch is answered with, in order."""
    return [decode_downlink(packet[packet.index(b"receipt\0") + 8 :]) for packet in done.packets]


def receipt_of(done: Done, agent: Agent) -> Receipt:
    """Return the receipt for an agent's boot."""
    (found,) = [r for r in said(done) if isinstance(r, Receipt) and r.boot_id == agent.boot_id]
    return found


_DIFFERENT = """
with cells as (
  select r.spot, time_bucket('15 minutes', r.time + (n - 1) * r.interval_s * interval '1 second')
      as bucket, r.line, sum(r.counts[2 * n - 1]) as i, sum(r.counts[2 * n]) as o
  from readings r, generate_series(1, cardinality(r.counts) / 2) n
  where r.spot <> 0 group by 1, 2, 3),
rolled as (
  select spot, bucket, line, i, o from rollup_15m cross join lateral
    (values (0, in0, out0), (1, in1, out1), (2, in2, out2), (3, in3, out3)) v (line, i, o)
  where i is not null)
select coalesce(c.spot, r.spot) as spot, coalesce(c.bucket, r.bucket) as bucket,
  coalesce(c.line, r.line) as line, c.i as read_in, r.i as rolled_in, c.o as read_out,
  r.o as rolled_out
from cells c full join rolled r on (c.spot, c.bucket, c.line) = (r.spot, r.bucket, r.line)
where (c.i, c.o) is distinct from (r.i::bigint, r.o::bigint)
  and (coalesce(c.i, 0), coalesce(c.o, 0)) is distinct from (coalesce(r.i, 0), coalesce(r.o, 0))
"""

_DIFFERENT_PRESSES = """
with pressed as (
  select spot, time_bucket('15 minutes', time) as bucket, questionnaire, question, answer,
    count(*) as n
  from presses where spot <> 0 group by 1, 2, 3, 4, 5)
select * from pressed p
  full join presses_15m r using (spot, bucket, questionnaire, question, answer)
where p.n is distinct from r.presses::bigint and coalesce(p.n, 0) <> coalesce(r.presses, 0)
"""


async def differences(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """Return where rollups and rows disagree: nowhere, if all is well. In SQL of its own."""
    rows: list[asyncpg.Record] = await connection.fetch(_DIFFERENT)
    rows += await connection.fetch(_DIFFERENT_PRESSES)
    return rows


async def rebuilt(connection: asyncpg.Connection) -> list[Change]:
    """Return the buckets that a rebuild from the rows would change, coverage included."""
    spots = await connection.fetch("select distinct spot from rollup_15m")
    changes: list[Change] = []
    for row in spots:
        low, high = await connection.fetchrow(
            "select min(bucket), max(bucket) + interval '15 minutes' from rollup_15m "
            "where spot = $1",
            row["spot"],
        )
        changes += await rebuild(connection, row["spot"], low, high, write=False)
    return changes


@asynccontextmanager
async def owning(stack: Stack, database: str) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection to a database, migrated if it is not yet."""
    dsn = stack.endpoints.dsn("owner", database)
    connection = await asyncpg.connect(dsn)
    try:
        try:
            await check_schema(connection)
        except SchemaMismatch:
            await migrate(dsn)
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def ingesting(stack: Stack, database: str) -> AsyncIterator[Ingesting]:
    """A pipeline on the database, its clock an hour past NOON."""
    async with asyncpg.create_pool(
        stack.endpoints.dsn("ingest", database), min_size=1, max_size=3
    ) as pool:
        clock = ManualClock(NOON + 60 * MINUTE)
        places = Places(clock)
        yield Ingesting(Pipeline(pool, places, clock), places, clock)


async def people(connection: asyncpg.Connection, spot: int) -> tuple[int, int]:
    """Return the in and out of a spot's readings, all lines together."""
    row = await connection.fetchrow(
        "select coalesce(sum(counts[2 * n - 1]), 0) as i, coalesce(sum(counts[2 * n]), 0) as o "
        "from readings, generate_series(1, cardinality(counts) / 2) n where spot = $1",
        spot,
    )
    return row["i"], row["o"]
