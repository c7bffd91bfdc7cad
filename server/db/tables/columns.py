"""The metadata of all tables, and the columns that many of them have.

Each call makes new columns: one belongs to one table.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import TSTZRANGE

metadata = MetaData()
INSTANT = DateTime(timezone=True)


def row_id(kind: type[Integer] = Integer) -> Column[int]:
    """The row's own number, which the database gives."""
    return Column("id", kind, Identity(always=True), primary_key=True)


def row_of(
    name: str, table: str, *, nullable: bool = False, primary_key: bool = False
) -> Column[int]:
    """Which row of another table it belongs to."""
    key = ForeignKey(f"{table}.id")
    return Column(name, Integer, key, nullable=nullable, primary_key=primary_key)


def ref() -> Column[str]:
    """The name by which everybody else knows it."""
    return Column("ref", Text, nullable=False)


def organisation() -> Column[int]:
    """Whose it is: what its row-level security goes by."""
    return row_of("organisation_id", "organisations")


def stamped(name: str) -> Column[Any]:
    """When something was; unless said, now."""
    return Column(name, INSTANT, nullable=False, server_default=text("now()"))


def or_empty(name: str) -> Column[str]:
    """A text that may be empty and is never null."""
    return Column(name, Text, nullable=False, server_default=text("''::text"))


def always() -> Column[Any]:
    """The stretch of time in which it holds; unless said, always."""
    default = "tstzrange(NULL::timestamp with time zone, NULL::timestamp with time zone)"
    return Column("valid", TSTZRANGE, nullable=False, server_default=text(default))


def by_line(prefix: str = "") -> list[Column[int]]:
    """People in and out by line, 0 to 3; null: the spot has no such line."""
    return [Column(f"{prefix}{way}{line}", Integer) for line in range(4) for way in ("in", "out")]


def frame() -> list[Column[int]]:
    """Which frame it came in: boot, number and digest."""
    return [Column(name, Integer, nullable=False) for name in ("boot", "seq", "digest")]


def graded() -> list[Column[int]]:
    """How finely the coarsest of its readings counts, and where its counts come from."""
    origin = Column("origin", SmallInteger, nullable=False, server_default=text("0"))
    return [Column("resolution_s", SmallInteger, nullable=False), origin]


def answer() -> list[Column[int]]:
    """Which answer to which question was pressed."""
    return [Column(name, SmallInteger, nullable=False) for name in ("question", "answer")]


def sums(name: str, zero: str = "") -> Column[Any]:
    """Running totals; unless said, `zero`."""
    default = text(f"'{{{zero}}}'::bigint[]")
    return Column(name, ARRAY(BigInteger), nullable=False, server_default=default)
