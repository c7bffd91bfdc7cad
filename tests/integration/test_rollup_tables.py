"""The tables in code are those that the migrations make."""

import re

import pytest
from sqlalchemy import Computed
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import Column

from server.db.tables import metadata
from tests.integration.api_world import World

pytestmark = pytest.mark.services

_COLUMNS = """
    select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           a.attidentity <> '', pg_get_expr(d.adbin, d.adrelid),
           coalesce((select a.attnum = any(conkey) from pg_constraint
                     where conrelid = c.oid and contype = 'p'), false),
           (select confrelid::regclass::text from pg_constraint
            where conrelid = c.oid and contype = 'f' and conkey[1] = a.attnum)
    from pg_class c join pg_attribute a on a.attrelid = c.oid
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0
      and not a.attisdropped and c.relname <> 'alembic_version'
    order by c.relname, a.attnum
"""
_SPELT = {"timestamp with time zone": "timestamptz", "double precision": "float8"}


async def test_the_tables_in_code_equal_the_migrated_database(world: World) -> None:
    migrated: dict[str, list[tuple[object, ...]]] = {}
    for table, *column in await world.owner.fetch(_COLUMNS):
        column[1] = _spelt(str(column[1]))
        migrated.setdefault(table, []).append(tuple(column))
    in_code = {name: [_described(c) for c in t.columns] for name, t in metadata.tables.items()}
    assert set(in_code) == set(migrated)
    for table, columns in migrated.items():
        assert in_code[table] == columns, table


def _described(column: "Column[object]") -> tuple[object, ...]:
    kind = column.type.compile(dialect=postgresql.dialect()).lower()  # type: ignore[no-untyped-call]
    default = column.computed or column.server_default
    keys = [key.column.table.name for key in column.foreign_keys]
    return (
        column.name,
        _spelt(kind),
        not column.nullable,
        column.identity is not None,
        None if default is None or column.identity is not None else _text(default),
        column.primary_key,
        keys[0] if keys else None,
    )


def _text(default: object) -> str:
    return str(default.sqltext if isinstance(default, Computed) else default.arg)  # type: ignore[attr-defined]


def _spelt(kind: str) -> str:
    for long, short in _SPELT.items():
        kind = kind.replace(long, short)
    return re.sub(r", ", ",", kind)
