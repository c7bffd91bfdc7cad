"""Money of several currencies: never mixed silently, always by a rate that is named."""

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.insight.money import (
    STALE,
    Amount,
    MixedCurrenciesError,
    NoRateError,
    Rate,
    Table,
    add_up,
)

DAY = date(2026, 4, 1)
cents = st.decimals("-1e6", "1e6", places=2)


def rate(base: str, quote: str, value: str, *, day: date = DAY) -> Rate:
    return Rate(day, base, quote, Decimal(value), "ECB")


SEK, DKK = rate("EUR", "SEK", "11.2345"), rate("EUR", "DKK", "7.4601")


def test_one_currency_is_added_up_as_it_is() -> None:
    found = add_up([Amount(DAY, Decimal("0.10"), "SEK")] * 3, Table([]))
    assert (found.value, found.currency, found.rates) == (Decimal("0.30"), "SEK", ())
    assert add_up([], Table([])).value == 0


def test_several_currencies_are_refused_without_one_to_add_up_in() -> None:
    with pytest.raises(MixedCurrenciesError, match="DKK, SEK"):
        add_up([Amount(DAY, Decimal(1), "SEK"), Amount(DAY, Decimal(1), "DKK")], Table([SEK, DKK]))


def test_the_rate_of_the_day_is_used_and_named() -> None:
    found = add_up(
        [Amount(DAY, Decimal("112.345"), "SEK"), Amount(DAY, Decimal(1), "EUR")],
        Table([SEK, rate("EUR", "SEK", "99", day=DAY + timedelta(days=1))]),
        to="EUR",
    )
    assert (found.value, found.rates) == (Decimal("11.00"), (SEK,))


def test_a_weekend_has_the_rate_of_the_last_day_before_it_and_no_older_one() -> None:
    amount = Amount(DAY + STALE, Decimal(1), "EUR")
    assert add_up([amount], Table([SEK]), to="SEK").rates == (SEK,)
    late = Amount(DAY + STALE + timedelta(days=1), Decimal(1), "EUR")
    with pytest.raises(NoRateError, match="EUR to SEK"):
        add_up([late], Table([SEK]), to="SEK")
    with pytest.raises(NoRateError):
        add_up([Amount(DAY - timedelta(days=1), Decimal(1), "EUR")], Table([SEK]), to="SEK")


@given(st.lists(st.tuples(cents, st.sampled_from(["SEK", "DKK", "EUR"])), max_size=12))
def test_a_sum_is_what_fractions_say(amounts: list[tuple[Decimal, str]]) -> None:
    in_eur = {"EUR": Fraction(1), "SEK": 1 / Fraction(SEK.rate), "DKK": 1 / Fraction(DKK.rate)}
    exact = sum(Fraction(value) * in_eur[name] for value, name in amounts) / in_eur["DKK"]
    found = add_up([Amount(DAY, *each) for each in amounts], Table([SEK, DKK]), to="DKK")
    assert abs(Fraction(found.value) - exact) <= Fraction(1, 200) + Fraction(1, 10**9)
    assert found.value == found.value.quantize(Decimal("0.01"))
    used = {name for _, name in amounts} - {"DKK"}
    wanted = ({SEK} if "SEK" in used else set()) | ({DKK} if used else set())
    assert set(found.rates) == wanted


def test_cross_rates_go_over_the_currency_whose_rates_are_the_latest() -> None:
    old = rate("USD", "SEK", "10", day=DAY - timedelta(days=2))
    table = Table([SEK, DKK, old, rate("USD", "DKK", "6.5")])
    assert set(add_up([Amount(DAY, Decimal(1), "SEK")], table, to="DKK").rates) == {SEK, DKK}
