"""Adding up money: of one currency as it is, of several only by stated daily rates. Pure.

Decided here: amounts of several currencies are not added up unless somebody says into which. Then
each amount is converted by the rate that was stated for its day, or, as banks state none on
weekends and holidays, for the last day before it, at most `STALE` back. A rate serves both ways;
two rates over one common currency make a third. The sum names every rate it rests on. Only the
sum is rounded, to two decimals, half to even; everything before is exact to 28 digits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import NamedTuple

from server.errors import RefusedError

STALE = timedelta(days=7)
_CENT = Decimal("0.01")


class MixedCurrenciesError(RefusedError):
    """Amounts of several currencies were to be added up without saying into which."""

    def __init__(self, currencies: Iterable[str]) -> None:
        self.parameter = "currency"
        named = ", ".join(sorted(currencies))
        super().__init__("mixed_currencies", f"the amounts are in {named}: say in which to add up")


class NoRateError(RefusedError):
    """There is no rate for a day, nor for the days before it."""

    def __init__(self, base: str, quote: str, day: date) -> None:
        self.parameter = "currency"
        super().__init__(
            "no_rate", f"no rate from {base} to {quote} for {day}, nor for {STALE.days} days before"
        )


class Amount(NamedTuple):
    """So much on a day."""

    day: date
    value: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class Rate:
    """One of `base` was `rate` of `quote` on that day, as `source` says."""

    day: date
    base: str
    quote: str
    rate: Decimal
    source: str


@dataclass(frozen=True, slots=True)
class Total:
    """A sum, and the rates that it rests on."""

    value: Decimal
    currency: str | None
    rates: tuple[Rate, ...] = ()


class Table:
    """Stated rates, by day and pair."""

    def __init__(self, rates: Iterable[Rate]) -> None:
        self._stated: dict[tuple[str, str], dict[date, Rate]] = {}
        self._beside: dict[str, set[str]] = {}
        for rate in rates:
            self._stated.setdefault((rate.base, rate.quote), {})[rate.day] = rate
            self._beside.setdefault(rate.base, set()).add(rate.quote)
            self._beside.setdefault(rate.quote, set()).add(rate.base)

    def convert(self, amount: Amount, to: str) -> tuple[Decimal, tuple[Rate, ...]]:
        """Return an amount in another currency, not rounded, and by which rates. NoRateError."""
        if amount.currency == to:
            return amount.value, ()
        direct = self._latest(amount.currency, to, amount.day)
        if direct is not None:
            return amount.value * _one(direct, amount.currency), (direct,)
        best: tuple[Rate, Rate] | None = None
        for common in sorted(
            self._beside.get(amount.currency, set()) & self._beside.get(to, set())
        ):
            one = self._latest(amount.currency, common, amount.day)
            other = self._latest(common, to, amount.day)
            if one is None or other is None:
                continue
            if best is None or min(one.day, other.day) > min(each.day for each in best):
                best = one, other
        if best is None:
            raise NoRateError(amount.currency, to, amount.day)
        one, other = best
        between = ({one.base, one.quote} - {amount.currency}).pop()
        return amount.value * _one(one, amount.currency) * _one(other, between), best

    def _latest(self, base: str, quote: str, day: date) -> Rate | None:
        """Return the rate of a pair, either way round, for the day or the last before it."""
        ways = (self._stated.get((base, quote), {}), self._stated.get((quote, base), {}))
        for back in range(STALE.days + 1):
            for way in ways:
                found = way.get(day - timedelta(days=back))
                if found is not None:
                    return found
        return None


def _one(rate: Rate, currency: str) -> Decimal:
    """Return what one of `currency` is in the rate's other one."""
    return rate.rate if rate.base == currency else 1 / rate.rate


def add_up(amounts: Sequence[Amount], table: Table, *, to: str | None = None) -> Total:
    """Add up. Raises MixedCurrenciesError without a currency to do it in, NoRateError."""
    currencies = {amount.currency for amount in amounts}
    if to is None:
        if len(currencies) > 1:
            raise MixedCurrenciesError(currencies)
        to = next(iter(currencies), None)
        if to is None:
            return Total(Decimal("0.00"), None)
    total, used = Decimal(0), set[Rate]()
    for amount in amounts:
        value, by = table.convert(amount, to)
        total += value
        used.update(by)
    return Total(
        total.quantize(_CENT, rounding=ROUND_HALF_EVEN),
        to,
        tuple(sorted(used, key=lambda rate: (rate.day, rate.base, rate.quote))),
    )
