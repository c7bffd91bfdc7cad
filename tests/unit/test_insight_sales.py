"""Conversion and its relatives, and reading a till's file."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.insight.formulas import (
    Inputs,
    Takings,
    Value,
    atv,
    conversion,
    conversion_of,
    spv,
    upt,
)
from server.insight.tills import Read, read_tills

HEADER = "site,transaction,at,kind,amount,units"


def read(*rows: str, header: str = HEADER) -> Read:
    zones = {"lund": "Europe/Stockholm", "aarhus": "Europe/Copenhagen"}
    return read_tills([header, *rows], zones.get)


def day(
    sales: Takings, visits: float | None, *, s_cal: float | None = None, **known: Any
) -> Inputs:
    """A site's day; `s_cal` is its counters' relative standard error, None: nobody knows."""
    variance = None if s_cal is None or visits is None else (s_cal * visits) ** 2
    sold = sales._replace(currency="SEK")
    return Inputs(
        visits=visits, sales=sold, matched=sold, count_variance=variance,
        audited=s_cal is not None, **known,
    )  # fmt: skip


def half(value: Value) -> float:
    assert value.low is not None
    assert value.high is not None
    return (value.high - value.low) / 2


def test_the_published_conversion_and_its_interval() -> None:
    sales = Takings(300, Decimal(60_000), 900)
    found = conversion(day(sales, 1200, s_cal=0.03))
    assert found.value == 0.25
    assert half(found) == pytest.approx(0.029, abs=0.0005)
    assert half(conversion(day(sales, 1200))) == pytest.approx(0.025, abs=0.0005)
    _, low, high = conversion_of(300, 1200)
    assert ((high or 0) - (low or 0)) / 2 == pytest.approx(0.025, abs=0.0005)
    assert [kpi(day(sales, 1200)).value for kpi in (atv, upt, spv)] == [200, 3, 50]


def test_more_sales_than_visits_are_flagged_and_not_clipped() -> None:
    found = conversion(day(Takings(120, Decimal(1), 120), 100, s_cal=0.0))
    assert (found.value, found.flags) == (1.2, ("undercount_suspected",))


def test_sales_without_visits_have_no_conversion() -> None:
    sales = Takings(5, Decimal(500), 5)
    assert [kpi(day(sales, 0)).value for kpi in (conversion, spv, atv)] == [None, None, 100]
    assert conversion(day(sales, 0, s_cal=0.0)).flags == ("no_visits",)
    assert conversion(day(sales, None)).flags == ("visits_missing",)
    assert conversion(day(Takings(), 0, s_cal=0.0)).flags == ("no_visits",)


def test_visits_without_sales_have_conversion_0_and_no_ratios_of_sales() -> None:
    found = conversion(day(Takings(), 50, s_cal=0.0))
    assert (found.value, found.low, found.flags) == (0, None, ())
    assert [kpi(day(Takings(), 50)).value for kpi in (spv, atv, upt)] == [0, None, None]


def test_tills_that_never_said_anything_sold_not_nothing() -> None:
    found = conversion(Inputs(visits=50.0))
    assert (found.value, found.flags) == (None, ("no_tills",))


def test_partial_coverage_is_flagged() -> None:
    sales = Takings(5, Decimal(5), 5)
    found = conversion(day(sales, 50, s_cal=0.0, observed_s=90, expected_s=100))
    assert found.flags == ("partial_coverage",)


@given(
    st.integers(1, 10_000),
    st.decimals("0.01", "1e9", places=2, allow_nan=False),
    st.integers(1, 100_000),
)
def test_sales_per_visitor_are_conversion_times_average_sale(
    transactions: int, net: Decimal, visits: int
) -> None:
    inputs = day(Takings(transactions, net, transactions), visits)
    c, mean, each = (kpi(inputs).value or 0 for kpi in (conversion, atv, spv))
    assert each == pytest.approx(c * mean)


def test_a_good_file_is_read_in_the_sites_own_time() -> None:
    found = read(
        "lund,A1,2026-06-01T10:15:00,sale,129.90,2",
        "lund,A2,2026-06-01 10:16,return,-50,1",
        "aarhus,A1,2026-06-01T10:15:00Z,pickup,0,1",
    )
    assert not found.errors
    assert [row.at for _, row in found.rows] == [
        datetime(2026, 6, 1, 8, 15, tzinfo=UTC),
        datetime(2026, 6, 1, 8, 16, tzinfo=UTC),
        datetime(2026, 6, 1, 10, 15, tzinfo=UTC),
    ]
    assert found.rows[0][1].amount == Decimal("129.90")


def test_semicolons_and_decimal_commas_are_read_alike() -> None:
    found = read("lund;A1;2026-06-01T10:15;sale;129,90;2", header=HEADER.replace(",", ";"))
    assert found.rows[0][1].amount == Decimal("129.90")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("malmo,A1,2026-06-01T10:15,sale,1,1", "there is no site 'malmo'"),
        ("lund,,2026-06-01T10:15,sale,1,1", "transaction: expected 1 to 128"),
        ("lund,A1,2026-06-01,sale,1,1", "expected a date and a time"),
        ("lund,A1,01/06/2026 10:15,sale,1,1", "at: expected a time such as"),
        ("lund,A1,2026-06-01T10:15,gift,1,1", "kind: expected one of pickup, return"),
        ("lund,A1,2026-06-01T10:15,sale,1e9,1", "amount: expected a number"),
        ("lund,A1,2026-06-01T10:15,sale,NaN,1", "amount: expected a number"),
        ("lund,A1,2026-06-01T10:15,sale,1,1.5", "units: expected a whole number"),
        ("lund,A1,2026-06-01T10:15,sale,1", "expected 6 columns, got 5"),
        ("lund,A1,2026-03-29T02:30,sale,1,1", "never was in Europe/Stockholm"),
    ],
)
def test_a_bad_row_is_named_with_what_was_expected(row: str, message: str) -> None:
    found = read("lund,OK,2026-06-01T10:15,sale,1,1", row)
    assert [issue.line for issue in found.errors] == [3]
    assert message in found.errors[0].message
    assert len(found.rows) == 1


def test_a_time_that_was_twice_is_taken_as_its_first_pass_and_noted() -> None:
    found = read("lund,A1,2026-10-25T02:30,sale,1,1", "lund,A2,2026-10-25T02:30+01:00,sale,1,1")
    assert [row.at.hour for _, row in found.rows] == [0, 1]
    assert [issue.line for issue in found.warnings] == [2]


def test_the_same_row_twice_counts_once_and_a_different_one_is_refused() -> None:
    row = "lund,A1,2026-06-01T10:15,sale,1,1"
    found = read(row, row, "lund,A1,2026-06-01T10:15,sale,2,1")
    assert (len(found.rows), found.repeated) == (1, 1)
    assert "something else in line 2" in found.errors[0].message


def test_a_wrong_header_is_refused_as_a_whole() -> None:
    found = read("lund,A1", header="shop,receipt")
    assert not found.rows
    assert "expected the header" in found.errors[0].message
