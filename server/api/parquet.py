"""An answer's rows as a Parquet file: one schema a route, from the types of its rows.

Types: instants are timestamps in UTC, dates are dates, amounts are decimals of ten places, lists
are lists, records are structs, null stays null. A column's type follows from the row's type and
never from the rows, so that files of one route fit together, also empty ones.

pyarrow is large and comes with the extra `parquet`; it is imported when a file is asked for.
"""

import types
import typing
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MEDIA_TYPE = "application/vnd.apache.parquet"
INSTANTS = frozenset(
    {
        *("from", "until", "to", "at", "enrolled_at", "last_stored", "stored_to", "filled_at"),
        "recorded_at",
    }
)
"""Columns that rows hold as text because they are instants as ISO 8601 with Z."""


@cache
def available() -> bool:
    """Whether the extra `parquet` is installed."""
    return find_spec("pyarrow") is not None


def to_parquet(answer: msgspec.Struct, row: type[msgspec.Struct]) -> bytes:
    """Return the rows of `answer.data` as a compressed file, the same for the same rows."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with writer(sink, row) as file:
        file.write_table(table_of(answer, row))
    written: bytes = sink.getvalue().to_pybytes()
    return written


def writer(sink: Any, row: type[msgspec.Struct]) -> "pq.ParquetWriter":
    """Return what writes tables of a row's type to `sink`, one after the other; to be closed."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(sink, schema_of(row), compression="zstd")


def table_of(answer: msgspec.Struct, row: type[msgspec.Struct]) -> "pa.Table":
    """Return the rows of `answer.data` as a table."""
    import pyarrow as pa

    rows: Sequence[msgspec.Struct] = getattr(answer, "data", ())
    schema = schema_of(row)
    arrays = [
        pa.array((_plain(getattr(each, field.name), column.type) for each in rows), column.type)
        for field, column in zip(msgspec.structs.fields(row), schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


@cache
def schema_of(row: type[msgspec.Struct]) -> "pa.Schema":
    """Return the columns of a row's type. Raises TypeError for a type that has no column."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(each.encode_name, _column(each.type, name=each.encode_name))
            for each in msgspec.structs.fields(row)
        ]
    )


def _column(kind: Any, *, name: str = "") -> "pa.DataType":
    """Return the column type of an annotation."""
    import pyarrow as pa

    options = [each for each in typing.get_args(kind) if each is not type(None)]
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _column(options[0], name=name)
    if origin in (typing.Union, types.UnionType):
        if set(options) == {int, float}:
            return pa.float64()
        if set(options) == {int, str}:
            return pa.string()
        if len(options) != 1:
            raise TypeError(f"no column for {kind}")
        return _column(options[0], name=name)
    if origin is typing.Literal and all(isinstance(each, str) for each in options):
        return pa.string()
    if origin in (list, tuple):
        return pa.list_(_column(options[0]))
    if origin is dict:
        return pa.map_(_column(options[0]), _column(options[1]))
    if not isinstance(kind, type):
        raise TypeError(f"no column for {kind}")
    if issubclass(kind, msgspec.Struct):
        return pa.struct(
            [
                pa.field(each.encode_name, _column(each.type, name=each.encode_name))
                for each in msgspec.structs.fields(kind)
            ]
        )
    if issubclass(kind, Enum) or kind is str:
        return pa.timestamp("us", tz="UTC") if kind is str and name in INSTANTS else pa.string()
    plain = {
        bool: pa.bool_(), int: pa.int64(), float: pa.float64(), date: pa.date32(),
        datetime: pa.timestamp("us", tz="UTC"), Decimal: pa.decimal128(38, 10),
    }  # fmt: skip
    if kind not in plain:
        raise TypeError(f"no column for {kind}")
    return plain[kind]


def _plain(value: Any, column: "pa.DataType") -> Any:
    """Return a value as pyarrow takes it."""
    import pyarrow as pa

    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str) and pa.types.is_timestamp(column):
        return datetime.fromisoformat(value)
    if isinstance(value, int) and pa.types.is_string(column):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each, column.value_type) for each in value]
    if isinstance(value, dict):
        return [(name, _plain(each, column.item_type)) for name, each in value.items()]
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        return {
            each.encode_name: _plain(
                getattr(value, each.name),
                column.field(column.get_field_index(each.encode_name)).type,
            )
            for each in fields
        }
    return value
