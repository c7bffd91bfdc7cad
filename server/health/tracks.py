"""Tracks and episodes as rows: read and written by the one who decides, where they changed.

Of what is well and quiet there is no row: a track that need not be remembered is deleted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg

from server.health.episodes import NEW, Acknowledgement, Track
from server.health.incidents import NOWHERE, Place
from server.health.judgement import Condition, Evidence, Standing, Subject, SubjectKind

Key = tuple[Subject, Condition]


@dataclass(slots=True)
class Kept:
    """One condition of one subject while it is decided on; `episode`: the row that is open."""

    subject: Subject
    condition: Condition
    place: Place = NOWHERE
    track: Track = NEW
    episode: int | None = None
    evidence: Evidence = field(default_factory=dict)
    affected_from: datetime | None = None
    affected_until: datetime | None = None
    stored: bool = False

    @property
    def key(self) -> Key:
        return self.subject, self.condition


async def places_of(
    connection: asyncpg.Connection, subjects: Iterable[Subject], *, now: datetime
) -> dict[Subject, Place]:
    """Return where subjects are now; one that is not there any more has no place."""
    wanted: dict[SubjectKind, list[int]] = {kind: [] for kind in SubjectKind}
    for subject in subjects:
        wanted[subject.kind].append(subject.row)
    found: dict[Subject, Place] = {}
    for kind, sql in _PLACES.items():
        if wanted[kind]:
            for row, *place in await connection.fetch(sql, wanted[kind], now):
                found[Subject(kind, row)] = Place(*place)
    if wanted[SubjectKind.PLATFORM]:
        found[Subject(SubjectKind.PLATFORM)] = Place()
    return found


async def load(connection: asyncpg.Connection, keys: Iterable[Key]) -> dict[Key, Kept]:
    """Return what is kept of these, under lock."""
    asked = list(keys)
    rows = await connection.fetch(
        _BY_KEY,
        [subject.kind.value for subject, _ in asked],
        [subject.row for subject, _ in asked],
        [condition.value for _, condition in asked],
    )
    return {kept.key: kept for kept in map(_kept, rows)}


async def load_due(connection: asyncpg.Connection, *, now: datetime, limit: int) -> dict[Key, Kept]:
    """Return what is to be looked at by now, the earliest first."""
    return {kept.key: kept for kept in map(_kept, await connection.fetch(_DUE, now, limit))}


async def load_left(connection: asyncpg.Connection) -> list[Kept]:
    """Return what is kept of devices that are admitted no longer, or have changed hands."""
    return [_kept(row) for row in await connection.fetch(_LEFT)]


def _kept(row: asyncpg.Record) -> Kept:
    acknowledged = None
    if row["acknowledged_at"] is not None:
        acknowledged = Acknowledgement(
            row["acknowledged_by"], row["acknowledged_at"], row["acknowledged_until"]
        )
    track = Track(
        Standing(row["standing"]),
        row["judged_at"],
        row["noted_at"],
        row["from_at"],
        row["since"],
        row["cleared"],
        row["opened_at"],
        tuple(row["fired"]),
        row["times"] or 0,
        row["held"] or False,
        acknowledged,
    )
    return Kept(
        Subject(SubjectKind(row["subject"]), row["subject_id"]),
        Condition(row["condition"]),
        Place(row["organisation_id"], row["site_id"], row["device_id"], row["spot_id"]),
        track,
        row["episode_id"],
        json.loads(row["evidence"]),
        row["affected_from"],
        row["affected_until"],
        stored=True,
    )


async def save(
    connection: asyncpg.Connection, kept: Sequence[Kept], due: Mapping[Key, datetime | None]
) -> None:
    """Write these tracks back."""
    await connection.executemany(
        _SAVE,
        [
            (
                *(each.subject.kind.value, each.subject.row, each.condition.value),
                *(each.place.organisation, each.place.site, each.track.standing.value),
                *(each.track.judged_at, each.track.noted_at, each.track.from_at),
                *(each.track.since, each.track.cleared, list(each.track.fired), each.episode),
                *(json.dumps(dict(each.evidence)), each.affected_from, each.affected_until),
                due[each.key],
            )
            for each in kept
        ],
    )


async def forget(connection: asyncpg.Connection, kept: Sequence[Kept]) -> None:
    """Delete what need not be remembered."""
    await connection.execute(
        _FORGET,
        [each.subject.kind.value for each in kept],
        [each.subject.row for each in kept],
        [each.condition.value for each in kept],
    )


async def open_episode(connection: asyncpg.Connection, kept: Kept, *, opened_at: datetime) -> int:
    """Make the row of an episode that has just opened."""
    place, track = kept.place, kept.track
    found: int = await connection.fetchval(
        _OPENED,
        *(place.organisation, kept.subject.kind.value, kept.subject.row, kept.condition.value),
        *(place.site, place.device, place.spot, min(track.since or opened_at, opened_at)),
        *(opened_at, json.dumps(dict(kept.evidence)), kept.affected_from, kept.affected_until),
    )
    return found


async def write_open(connection: asyncpg.Connection, kept: Sequence[Kept]) -> None:
    """Write what has changed of episodes that are open."""
    await connection.executemany(
        _GOES_ON,
        [
            (
                *(each.episode, each.track.times, each.track.held),
                *(json.dumps(dict(each.evidence)), each.affected_from, each.affected_until),
                each.track.acknowledged is None,
            )
            for each in kept
        ],
    )


async def resolve_episode(
    connection: asyncpg.Connection, episode: int, *, at: datetime, how: str = "clear"
) -> None:
    """End an episode."""
    await connection.execute(_RESOLVED, episode, at, how)


_COLUMNS = """
    s.subject, s.subject_id, s.condition, s.organisation_id, s.site_id, s.standing, s.judged_at,
    s.noted_at, s.from_at, s.since, s.cleared, s.fired, s.episode_id, s.evidence::text as evidence,
    s.affected_from, s.affected_until, e.opened_at, e.times, e.held, e.device_id, e.spot_id,
    e.acknowledged_by, e.acknowledged_at, e.acknowledged_until
    from standings s left join episodes e on e.id = s.episode_id
"""
_BY_KEY = f"""
    select {_COLUMNS}
    where (s.subject, s.subject_id, s.condition) in (
        select * from unnest($1::text[], $2::int[], $3::text[]))
"""  # noqa: S608 - columns of ours
_DUE = f"select {_COLUMNS} where s.due_at <= $1 order by s.due_at limit $2"
_LEFT = f"""
    select {_COLUMNS} join devices d on d.id = s.subject_id
    where s.subject = 'device'
      and (not d.admitted or s.organisation_id is distinct from d.organisation_id)
"""  # noqa: S608 - columns of ours
_PLACES = {
    SubjectKind.SITE: """
        select id, organisation_id, id, null::int, null::int from sites
        where id = any($1::int[]) and $2::timestamptz is not null
    """,
    SubjectKind.DEVICE: """
        select d.id, d.organisation_id, p.site_id, d.id, p.id from devices d
        left join assignments a on a.device_id = d.id and a.valid @> $2::timestamptz
        left join spots p on p.id = a.spot_id
        where d.id = any($1::int[]) and d.admitted
    """,
    SubjectKind.SPOT: """
        select p.id, p.organisation_id, p.site_id, a.device_id, p.id from spots p
        left join assignments a on a.spot_id = p.id and a.valid @> $2::timestamptz
        where p.id = any($1::int[])
    """,
}
_SAVE = """
    insert into standings (subject, subject_id, condition, organisation_id, site_id, standing,
        judged_at, noted_at, from_at, since, cleared, fired, episode_id, evidence, affected_from,
        affected_until, due_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14::text::jsonb, $15, $16, $17)
    on conflict (subject, subject_id, condition) do update set organisation_id = $4, site_id = $5,
        standing = $6, judged_at = $7, noted_at = $8, from_at = $9, since = $10, cleared = $11,
        fired = $12, episode_id = $13, evidence = $14::text::jsonb, affected_from = $15,
        affected_until = $16, due_at = $17
"""
_FORGET = """
    delete from standings where (subject, subject_id, condition) in (
        select * from unnest($1::text[], $2::int[], $3::text[]))
"""
_OPENED = """
    insert into episodes (organisation_id, subject, subject_id, condition, site_id, device_id,
        spot_id, since, opened_at, evidence, affected_from, affected_until)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11, $12) returning id
"""
_GOES_ON = """
    update episodes set times = $2, held = $3, evidence = $4::text::jsonb, affected_from = $5,
        affected_until = $6,
        acknowledged_by = case when $7 then '' else acknowledged_by end,
        acknowledged_at = case when $7 then null else acknowledged_at end,
        acknowledged_until = case when $7 then null else acknowledged_until end
    where id = $1
"""
_RESOLVED = """
    update episodes set resolved_at = greatest($2, opened_at), resolved = $3 where id = $1
"""
