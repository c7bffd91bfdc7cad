"""Devices by filter: the fields in SQL, the devices that a filter finds, and how many they are.

What a filter means is decided in `filters`; here each field has its column, and each filter becomes
one condition with numbered parameters: nothing that anybody typed is ever part of the SQL. Of the
tables beside `devices`, those alone are joined that the filter asks for. A comparison with what is
not known is not true, and `not` of it is; so `not` is written `is not true`, and no null remains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

import asyncpg

from server.fleet.filters import (
    FIELDS,
    Among,
    Compare,
    Either,
    Every,
    Filter,
    Not,
    Op,
    Sort,
    Typed,
    Value,
    fields_of,
)


@dataclass(frozen=True, slots=True)
class Within:
    """The places that a reader sees: None is all; else devices that stand in one of these."""

    regions: Sequence[int] | None = None
    sites: Sequence[int] = ()


EVERYWHERE = Within()

_PRESENCE = "join presences p on p.device_id = d.id"
_PLACE = (
    "left join assignments a on a.device_id = d.id and a.valid @> {now} "
    "left join spots sp on sp.id = a.spot_id left join sites si on si.id = sp.site_id "
    "left join regions r on r.id = si.region_id"
)
_CERTIFICATE = "left join certificates c on c.device_id = d.id and c.state = 'active'"
_INCIDENTS = (
    "left join (select device_id, count(distinct incident_id) as many from episodes "
    "where organisation_id = $1 and resolved_at is null group by device_id) o "
    "on o.device_id = d.id"
)
_HEARD = "greatest(case when p.session <> 'lost' then p.session_at end, p.heartbeat_at, p.data_at)"


@dataclass(frozen=True, slots=True)
class _Column:
    """Where a field is read: an expression, and the joins that it takes. `{now}` is the time."""

    sql: str
    joins: tuple[str, ...] = ()


_COLUMNS = {
    "device": _Column("d.device"),
    "serial": _Column("d.serial"),
    "model": _Column("d.model"),
    "hardware": _Column("d.hardware_revision"),
    "kind": _Column("d.kind"),
    "lifecycle": _Column("d.state"),
    "state": _Column("p.state", (_PRESENCE,)),
    "firmware": _Column("version_key(p.agent)", (_PRESENCE,)),
    "agent": _Column("p.agent", (_PRESENCE,)),
    "heard": _Column(_HEARD, (_PRESENCE,)),
    "silent": _Column(f"({{now}} - {_HEARD})", (_PRESENCE,)),
    "site": _Column("si.ref", (_PLACE,)),
    "site.name": _Column("si.name", (_PLACE,)),
    "site.region": _Column("r.name", (_PLACE,)),
    "spot": _Column("sp.ref", (_PLACE,)),
    "spot.name": _Column("sp.name", (_PLACE,)),
    "condition": _Column("d.id"),
    "incidents": _Column("coalesce(o.many, 0)::float8", (_INCIDENTS,)),
    "certificate.days": _Column("c.not_after", (_CERTIFICATE,)),
}
_PLACES = {
    "certificate.days": "$2::timestamptz + make_interval(secs => 86400 * "
    "greatest(-1e6, least(1e6, {})))"
}  # beyond it no instant can be written
"""What a value becomes, so that a column may be compared as it is."""
_TYPES = {
    Sort.TEXT: "text",
    Sort.CHOICE: "text",
    Sort.VERSION: "int[]",
    Sort.NUMBER: "float8",
    Sort.DURATION: "interval",
    Sort.INSTANT: "timestamptz",
}
_AGENTS = (
    "p.agent = any(array(with recursive seen as (select min(agent) as agent from presences "
    "where organisation_id = $1 union all select (select min(n.agent) from presences n where "
    "n.organisation_id = $1 and n.agent > seen.agent) from seen where seen.agent is not null) "
    "select agent from seen where {test}))"
)
"""A version is made of each name once, not of each device's; an index leads from name to name."""
_FIRING = (
    "d.id = any(array(select device_id from episodes where organisation_id = $1 "
    "and resolved_at is null and device_id is not null and {test}))"
)
"""A device has any number of conditions: it is one of theirs, or none."""
_SITES = (
    "sp.site_id = any(array(select si.id from sites si where si.organisation_id = $1 and {test}))"
)
"""A site's name is looked at once, not for each of its devices."""
_KNOWN = {
    Sort.TEXT: "coalesce({}, '') <> ''",
    Sort.VERSION: _AGENTS.format(test="version_key(agent) is not null"),
}
_FOLDED = "lower({} collate pg_c_utf8)"


@dataclass(frozen=True, slots=True)
class Selection:
    """`from` and `where` of the devices that a filter finds, as `d`; with its parameters."""

    sql: str
    arguments: tuple[object, ...]


def selection(
    tree: Filter, *, organisation: int, now: datetime, within: Within = EVERYWHERE
) -> Selection:
    """Return what selects an organisation's devices that a filter finds, within some places."""
    arguments: list[object] = [organisation, now]
    condition = _condition(tree, arguments)
    joins = [join for name in FIELDS if name in fields_of(tree) for join in _COLUMNS[name].joins]
    if within.regions is not None:
        arguments += [list(within.regions), list(within.sites)]
        most = len(arguments)
        condition += f" and (si.region_id = any(${most - 1}::int[]) or si.id = any(${most}::int[]))"
        joins.append(_PLACE)
    joined = " ".join(dict.fromkeys(joins)).replace("{now}", "$2::timestamptz")
    return Selection(
        f"from devices d {joined} where d.organisation_id = $1 and $2::timestamptz is not null "
        f"and {condition}",
        tuple(arguments),
    )


async def found(
    connection: asyncpg.Connection,
    selected: Selection,
    *,
    after: str = "",
    limit: int | None = None,
) -> list[tuple[int, str]]:
    """Return rows and names of up to `limit` selected devices, by name, those beyond `after`."""
    count = len(selected.arguments)
    rows = await connection.fetch(
        f"select d.id, d.device {selected.sql} and d.device > ${count + 1} "
        f"order by d.device limit ${count + 2}",
        *(*selected.arguments, after, limit),
    )
    return [(row["id"], row["device"]) for row in rows]


async def number(connection: asyncpg.Connection, selected: Selection) -> int:
    """Return how many devices are selected."""
    many: int = await connection.fetchval(
        f"select count(*) {selected.sql}",
        *selected.arguments,
    )
    return many


def _condition(tree: Filter, arguments: list[object]) -> str:
    match tree:
        case Compare():
            return _comparison(tree, arguments)
        case Among():
            inside = _any(tree.field, tree.values, arguments)
            return f"({inside}) is not true" if tree.negated else inside
        case Not():
            return f"({_condition(tree.inner, arguments)}) is not true"
        case Every():
            return _joined(" and ", tree.parts, arguments) or "true"
        case Either():
            return _joined(" or ", tree.parts, arguments) or "false"
        case _ as never:
            assert_never(never)


def _joined(sign: str, parts: Sequence[Filter], arguments: list[object]) -> str:
    text = sign.join(_condition(part, arguments) for part in parts)
    return f"({text})" if text else ""


def _column(field: str) -> str:
    return _COLUMNS[field].sql.replace("{now}", "$2::timestamptz")


def _comparison(leaf: Compare, arguments: list[object]) -> str:
    column = _column(leaf.field)
    negated = leaf.op in (Op.IS_NOT, Op.HAS_NOT)
    if leaf.none:
        if leaf.field == "condition":
            known = _FIRING.format(test="true")
            return known if negated else f"not ({known})"
        known = _KNOWN.get(FIELDS[leaf.field].sort, "{} is not null").format(column)
        return f"({known})" if negated else f"not ({known})"
    positive = _positive(leaf, column, arguments)
    return f"({positive}) is not true" if negated else f"({positive})"


def _positive(leaf: Compare, column: str, arguments: list[object]) -> str:
    op = {Op.IS_NOT: Op.IS, Op.HAS_NOT: Op.HAS}.get(leaf.op, leaf.op)
    arguments.append(_argument(leaf.value.typed))
    sort = FIELDS[leaf.field].sort
    place = f"${len(arguments)}::{_TYPES[sort]}"
    place = _PLACES.get(leaf.field, "{}").format(place)
    if leaf.field == "condition":
        return _FIRING.format(test=f"condition = {place}")
    if sort is Sort.VERSION:
        return _AGENTS.format(test=f"version_key(agent) {op} {place}")
    if op is Op.HAS:
        has = f"position({_FOLDED.format(place)} in {_FOLDED.format(column)}) > 0"
        return _SITES.format(test=has) if leaf.field == "site.name" else has
    return f"{column} {op} {place}"


def _any(field: str, values: Sequence[Value], arguments: list[object]) -> str:
    """Return that a field has one of some values."""
    sort = FIELDS[field].sort
    if sort in (Sort.TEXT, Sort.CHOICE) and field != "condition":
        arguments.append([value.typed for value in values])
        return f"({_column(field)} = any(${len(arguments)}::text[]))"
    each = [_positive(Compare(field, Op.IS, value), _column(field), arguments) for value in values]
    return f"({' or '.join(each)})"


def _argument(value: Typed) -> object:
    return list(value) if isinstance(value, tuple) else value
