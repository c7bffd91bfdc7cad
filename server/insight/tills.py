"""A till's row: `site,transaction,at,kind,amount,units`, read as `server.insight.rows` says. Pure.

Amounts are without VAT, after discounts, in the site's currency.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from server.insight import rows
from server.insight.rows import Rows, Table, ZoneOf

COLUMNS = ("site", "transaction", "at", "kind", "amount", "units")
KINDS = frozenset({"sale", "return", "pickup", "void"})
_MOST_UNITS = 999_999


@dataclass(frozen=True, slots=True)
class Transaction:
    """One receipt of a till."""

    site: str
    ref: str
    at: datetime
    kind: str
    amount: Decimal
    units: int


Read = Rows[Transaction]


def read_tills(lines: Iterable[str], zone_of: ZoneOf) -> Read:
    """Read a file's lines."""
    return rows.read_rows(lines, TILLS, zone_of)


def _parse(row: Sequence[str], zone_of: ZoneOf) -> tuple[Transaction, str]:
    site, ref, at, kind, amount, units = row
    zone = rows.zone(site, zone_of)
    ref = rows.ref(ref, "transaction")
    rows.one_of(kind, KINDS, "kind")
    value = rows.amount(amount)
    count = rows.whole(units, "units", low=-_MOST_UNITS, high=_MOST_UNITS)
    instant, note = rows.instant(at, zone)
    return Transaction(site, ref, instant, kind, value, count), note


TILLS = Table("transaction", COLUMNS, _parse, lambda row: (row.site, row.ref), lambda row: row.ref)
