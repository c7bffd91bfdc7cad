"""Releases as rows: what was published, for plans, offers and pages. The operator's; every act is
audited.

A row says what the signed targets say; they are what counts. A release is withdrawn here at once,
so that nobody is offered it any more, and for good once its target is signed away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from protocol.release import Release, component_of
from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.firmware.repository import Target
from server.fleet.register import new_ref


@dataclass(frozen=True, slots=True)
class Row:
    """A release with its place in the database."""

    id: int
    ref: str
    target: Target
    published_at: datetime
    withdrawn_at: datetime | None


async def note_published(
    connection: asyncpg.Connection, targets: Sequence[Target], *, actor: str, now: datetime
) -> tuple[list[str], list[str]]:
    """Make the rows those of the signed targets; returns which were added and which withdrawn."""
    known = {row.target.path: row for row in await listed(connection)}
    versions = {_name(row.target.release): row.target.path for row in known.values()}
    added, gone = [], []
    for target in targets:
        if target.path in known:
            continue
        name = _name(target.release)
        if name in versions:
            raise ConflictError(f"{name} was published before, with other bytes: {versions[name]}")
        await connection.execute(_ADD, new_ref("rel"), *_values(target), now)
        await _note(connection, "release published", target, actor=actor, now=now)
        added.append(name)
    approved = {target.path for target in targets}
    for path, row in known.items():
        if path not in approved and row.withdrawn_at is None:
            await _withdraw(connection, row, actor=actor, now=now)
            gone.append(_name(row.target.release))
    return added, gone


async def listed(connection: asyncpg.Connection) -> list[Row]:
    """Return every release that there ever was, the newest first."""
    return [_row(found) for found in await connection.fetch(_LIST)]


async def find(connection: asyncpg.Connection, component: str, version: str) -> Row:
    """Return one release. Raises NotFoundError."""
    found = await connection.fetchrow(
        f"{_SELECT} where component = $1 and version = $2", component, version
    )
    if found is None:
        raise NotFoundError(f"no release {component} {version}")
    return _row(found)


async def withdraw(
    connection: asyncpg.Connection, component: str, version: str, *, actor: str, now: datetime
) -> Row:
    """Offer a release to nobody any more. Raises NotFoundError, ConflictError."""
    row = await find(connection, component, version)
    if row.withdrawn_at is not None:
        raise ConflictError(f"{component} {version} was withdrawn on {row.withdrawn_at:%Y-%m-%d}")
    await _withdraw(connection, row, actor=actor, now=now)
    return row


async def _withdraw(connection: asyncpg.Connection, row: Row, *, actor: str, now: datetime) -> None:
    await connection.execute("update releases set withdrawn_at = $2 where id = $1", row.id, now)
    await _note(connection, "release withdrawn", row.target, actor=actor, now=now)


async def _note(
    connection: asyncpg.Connection, act: str, target: Target, *, actor: str, now: datetime
) -> None:
    detail = {"target": target.path, "floor": target.release.floor}
    subject = _name(target.release)
    await record(connection, actor=actor, act=act, subject=subject, detail=detail, now=now)


def _values(target: Target) -> Iterable[object]:
    release = target.release
    yield from (release.component, release.version, release.floor, release.requires)
    yield from (target.path, target.length, target.sha256, list(release.hardware), release.notes)


def _name(release: Release) -> str:
    return f"{release.component} {release.version}"


def _row(found: asyncpg.Record) -> Row:
    release = Release(
        component_of(found["component"], "component"),
        found["version"],
        found["floor"],
        found["requires"],
        tuple(found["hardware"]),
        found["notes"],
    )
    target = Target(found["target"], found["length"], found["sha256"], release)
    return Row(found["id"], found["ref"], target, found["published_at"], found["withdrawn_at"])


_SELECT = (
    "select id, ref, component, version, floor, requires, target, length, sha256, hardware, notes, "
    "published_at, withdrawn_at from releases"
)
_LIST = f"{_SELECT} order by published_at desc, id desc"
_ADD = (
    "insert into releases (ref, component, version, floor, requires, target, length, sha256, "
    "hardware, notes, published_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
)
