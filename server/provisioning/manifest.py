"""The allow-list: a factory's manifest of what it has made becomes devices that may be set up.

A CSV with the columns `serial,model,kind,hardware_revision,setup_secret` and, if wanted, `site` (a
ref) and `allowed_until` (ISO date or time). Every row is judged before any is written; a row that
says what is there already does nothing. Of a secret only SHA-256 is kept, and it stands in no
message.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from enum import StrEnum

import asyncpg

from protocol.label import SECRET_LENGTH, Label, LabelError, label, typed
from server.admission.orders import move
from server.audit.log import record
from server.errors import NotFoundError, RefusedError
from server.fleet.lifecycle import State
from server.fleet.register import new_device_id

REQUIRED = ("serial", "model", "kind", "hardware_revision", "setup_secret")
OPTIONAL = ("site", "allowed_until")
MOST_ROWS = 100_000
MAX_TEXT = 100  # of a model or a revision


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be read; its secret does not show."""

    line: int
    label: Label
    model: str
    kind: str
    hardware_revision: str
    site: str
    allowed_until: datetime | None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be taken, and why."""

    line: int
    why: str


class Deed(StrEnum):
    """What becomes of a row."""

    ADD = "add"
    CHANGE = "change"
    AGAIN = "manufacture again"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be done about a row; `device` is the row of the one that is there already."""

    row: Row
    deed: Deed
    device: int | None
    site: int | None


def read(data: bytes) -> tuple[list[Row], list[BadRow]]:
    """Read a manifest. RefusedError (`bad_csv`) if it is no CSV with the columns of one."""
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
        return _read(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RefusedError("bad_csv", f"the manifest is no CSV in UTF-8: {error}") from error


def _read(reader: "csv.DictReader[str]") -> tuple[list[Row], list[BadRow]]:
    columns = tuple(reader.fieldnames or ())
    if not set(REQUIRED) <= set(columns) <= {*REQUIRED, *OPTIONAL}:
        raise RefusedError(
            "bad_csv",
            f"expected the columns {','.join(REQUIRED)} and perhaps {','.join(OPTIONAL)}; "
            f"got {','.join(columns)[:200]}",
        )
    rows: list[Row] = []
    bad: list[BadRow] = []
    serials: dict[str, int] = {}
    secrets: dict[str, int] = {}
    for fields in reader:
        line = reader.line_num
        if len(rows) + len(bad) >= MOST_ROWS:
            raise RefusedError("bad_csv", f"a manifest has {MOST_ROWS:,} rows at most")
        try:
            row = _read_row(fields, line)
            for seen, key, what in (
                (serials, row.label.serial, "serial"),
                (secrets, row.label.secret, "set-up secret"),
            ):
                if seen.setdefault(key, line) != line:
                    raise ValueError(f"this {what} stands in line {seen[key]} already")
        except ValueError as error:
            bad.append(BadRow(line, str(error)))
        else:
            rows.append(row)
    return rows, bad


def _read_row(fields: dict[str | None, str | None], line: int) -> Row:
    """Return the row; ValueError says what is wrong, without the secret."""
    if None in fields or None in fields.values():
        raise ValueError("the row has another number of fields than the header")
    got = {str(name): (value or "").strip() for name, value in fields.items()}
    for name in ("model", "hardware_revision"):
        if len(got[name]) > MAX_TEXT or "\0" in got[name]:
            raise ValueError(f"{name} has {MAX_TEXT} characters at most")
    if got["kind"] not in ("counter", "kiosk"):
        raise ValueError(f"kind is counter or kiosk, got {got['kind'][:40]!r}")
    secret = got["setup_secret"]
    plain_length = len(secret.replace("-", "").replace(" ", ""))
    read_as = typed if plain_length == SECRET_LENGTH + 1 else label
    try:
        found = read_as(got["serial"], secret)
    except LabelError as error:
        raise ValueError(str(error)) from None
    until = got.get("allowed_until", "")
    return Row(
        line,
        found,
        got["model"],
        got["kind"],
        got["hardware_revision"],
        got.get("site", ""),
        _until(until) if until else None,
    )


def _until(text: str) -> datetime:
    """Return a time; a date alone means its end in UTC."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"allowed_until is an ISO date or time, got {text[:40]!r}") from None
    if len(text) == len("2026-01-01"):
        at = datetime.combine(at.date(), time(23, 59, 59))
    return at if at.tzinfo else at.replace(tzinfo=UTC)


async def plan(
    connection: asyncpg.Connection, organisation: int, rows: Sequence[Row]
) -> tuple[list[Planned], list[BadRow]]:
    """Return what is to be done about each row, and which rows contradict what is there.

    The devices that are there stay locked until the caller's transaction ends.
    """
    known = {
        row["serial"]: row
        for row in await connection.fetch(
            "select d.id, d.serial, d.organisation_id, d.kind, d.model, d.hardware_revision, "
            "d.setup_sha256, d.intended_site_id, d.allowed_until, d.state, exists (select from "
            "certificates c where c.device_id = d.id and c.state = 'active') as enrolled "
            "from devices d where d.serial = any($1) order by d.id for update of d",
            [row.label.serial for row in rows],
        )
    }
    sites = {
        row["ref"]: row["id"]
        for row in await connection.fetch(
            "select id, ref from sites where organisation_id = $1", organisation
        )
    }
    planned: list[Planned] = []
    bad: list[BadRow] = []
    for row in rows:
        found = known.get(row.label.serial)
        if row.site and row.site not in sites:
            bad.append(BadRow(row.line, f"the organisation has no site {row.site[:40]!r}"))
        elif found is None:
            planned.append(Planned(row, Deed.ADD, None, sites.get(row.site)))
        elif why := _contradicts(found, row, organisation):
            bad.append(BadRow(row.line, why))
        else:
            site = sites.get(row.site)
            planned.append(Planned(row, _deed(found, row, site), found["id"], site))
    return planned, bad


def _contradicts(found: asyncpg.Record, row: Row, organisation: int) -> str:
    """Return why a known device can't be what the row says, or nothing."""
    if found["organisation_id"] != organisation:
        return f"{row.label.serial} belongs to another organisation"
    if found["kind"] != row.kind:
        return f"{row.label.serial} is known as a {found['kind']}"
    if found["state"] == "retired":
        return f"{row.label.serial} is retired for good"
    if found["enrolled"] and found["setup_sha256"] not in (None, row.label.secret_sha256):
        return f"{row.label.serial} is enrolled, with another set-up secret"
    return ""


def _deed(found: asyncpg.Record, row: Row, site: int | None) -> Deed:
    if found["state"] == "returned":
        return Deed.AGAIN
    there = (
        found["model"],
        found["hardware_revision"],
        found["setup_sha256"],
        found["intended_site_id"],
        found["allowed_until"],
    )
    said = (row.model, row.hardware_revision, row.label.secret_sha256, site, row.allowed_until)
    return Deed.NOTHING if there == said else Deed.CHANGE


async def carry_out(
    connection: asyncpg.Connection,
    organisation: int,
    planned: Sequence[Planned],
    *,
    actor: str,
    now: datetime,
) -> None:
    """Write what was planned, and one line of audit. Within the transaction of `plan`."""
    await connection.executemany(
        "insert into devices (organisation_id, device, kind, serial, model, hardware_revision, "
        "setup_sha256, intended_site_id, allowed_until, state, state_since) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'manufactured', $10)",
        [
            (
                organisation,
                new_device_id(p.row.kind),
                p.row.kind,
                p.row.label.serial,
                *_said(p),
                now,
            )
            for p in planned
            if p.deed is Deed.ADD
        ],
    )
    await connection.executemany(
        "update devices set model = $2, hardware_revision = $3, setup_sha256 = $4, "
        "intended_site_id = $5, allowed_until = $6 where id = $1",
        [(p.device, *_said(p)) for p in planned if p.deed in (Deed.CHANGE, Deed.AGAIN)],
    )
    for one in planned:
        if one.deed is Deed.AGAIN:
            device = await connection.fetchval(
                "select device from devices where id = $1", one.device
            )
            await move(
                connection,
                device=device,
                to=State.MANUFACTURED,
                reason="manufactured again",
                actor=actor,
                now=now,
            )
    serials = [p.row.label.serial for p in planned if p.deed is not Deed.NOTHING]
    if not serials:
        return
    await connection.execute(
        "update unknown_devices set dismissed_at = $2 where serial = any($1)", serials, now
    )
    counts = Counter(p.deed for p in planned)
    await record(
        connection,
        actor=actor,
        act="manifest imported",
        detail={deed.value: counts[deed] for deed in Deed} | {"first": serials[0]},
        organisation=organisation,
        now=now,
    )


def _said(planned: Planned) -> tuple[str, str, bytes, int | None, datetime | None]:
    row = planned.row
    return (
        row.model,
        row.hardware_revision,
        row.label.secret_sha256,
        planned.site,
        row.allowed_until,
    )


async def organisation_named(connection: asyncpg.Connection, name: str) -> int:
    """Return the row of an organisation by name or ref. NotFoundError."""
    found: int | None = await connection.fetchval(
        "select id from organisations where name = $1 or ref = $1", name
    )
    if found is None:
        raise NotFoundError(f"no organisation {name!r}")
    return found
