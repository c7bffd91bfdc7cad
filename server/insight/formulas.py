"""The formulas of the KPIs, from sums to a value with its interval and what is to be known of it.

Pure. A KPI is worked out from `Inputs`, the sums over everything that a row is about: sites and
stretches of time are added up first and divided once, so every rate is a ratio of sums, never a
mean of ratios. `definitions` says in words what each function here does.

Decided here: what was not measured is null, and a flag says why; nothing is clipped to look
right (a conversion above 1 is answered, and flagged); intervals are of 95 %.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import exp, hypot, log, sqrt
from typing import NamedTuple

from server.feedback.indices import Kind, Z, index_of, student_t, wilson
from server.rollup.quality import COMPLETE, coverage

IMPUTED_SE = 0.15
"""Relative standard error of what was not covered: by how much a street counter's day differs from
its expectation (eight sensors, eight years: 14 to 15 %)."""
CROSSINGS_PER_SHIFT = 6
"""How often staff walk in during a shift, where nobody tagged them: an assumption, 4 to 8."""
MOST_DWELL_MIN = 20
"""With a longer median dwell an hour's sales are of other people than its visits."""


class Takings(NamedTuple):
    """What the tills say; `*_squares` are sums of squares per sale, for intervals of means.

    `currency`: None where no till has ever said anything, empty where there are several.
    """

    transactions: int = 0
    net_sales: Decimal = Decimal(0)
    units: int = 0
    pickups: int = 0
    returns: int = 0
    net_squares: float = 0.0
    units_squares: float = 0.0
    currency: str | None = None


def taken_together(parts: Sequence[Takings]) -> Takings:
    """Add up; of two currencies the sum has none that could be told."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Takings()
    told = {part.currency for part in parts} - {None}
    return Takings(
        sum([part.transactions for part in parts]),
        sum([part.net_sales for part in parts], Decimal(0)),
        sum([part.units for part in parts]),
        sum([part.pickups for part in parts]),
        sum([part.returns for part in parts]),
        sum([part.net_squares for part in parts]),
        sum([part.units_squares for part in parts]),
        told.pop() if len(told) == 1 else ("" if told else None),
    )


class Cohort(NamedTuple):
    """Holders of a consented token and what a model says of them, by equal periods from 0 on.

    `margins`: what one who is still a customer brings in each; their churn is beta distributed
    (`alpha`, `beta`); `discount` is that of one period.
    """

    holders: int
    margins: tuple[float, ...]
    alpha: float
    beta: float
    discount: float


_NOTHING_TOLD = Takings()


@dataclass(slots=True)
class Inputs:
    """Sums over what a row is about; None: not measured, or not known.

    Filled in by `reading`, source by source, and given its counters' error at last, in place: a
    copy of so many fields for each source takes longer than all else.

    `matched` are the sales of where visits are known, and alone divide by them. `due` are visits
    whose purchase falls into the row's time, where that differs from the visits themselves.
    `groups` are told by counters, `tokens` (the visits of each holder who came) and `cohorts` by
    holders' consent: no source of a site's tells them yet, and their KPIs are null and say so.
    `count_variance` is the counters' own error, None where one was never audited, or counted nobody
    in its recount.
    """

    visits: float | None = None
    exits: float | None = None
    passers: float | None = None
    groups: float | None = None
    observed_s: int = 0
    expected_s: int = 0
    sales: Takings = _NOTHING_TOLD
    matched: Takings = _NOTHING_TOLD
    due: float | None = None
    staffed_hours: float | None = None
    shifts: float | None = None
    answers: Mapping[Kind, tuple[int, ...]] = field(default_factory=dict)
    responses: int | None = None
    asked: float | None = None
    inside_s: float | None = None
    inside_of_s: int = 0
    stayed_s: float | None = None
    stayers: float | None = None
    peak: float | None = None
    peak_at: str | None = None
    tokens: tuple[int, ...] = ()
    cohorts: tuple[Cohort, ...] = ()
    count_variance: float | None = 0.0
    audited: bool = False
    notes: frozenset[str] = frozenset()

    @property
    def coverage(self) -> float | None:
        return coverage(self.observed_s, self.expected_s)


def added(parts: Sequence[Inputs]) -> Inputs:
    """Return the sum of parts that do not overlap: sites, or stretches of time.

    The counters' errors of the parts are taken for independent: add up a site's time first, and
    give it its error then.
    """
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Inputs()
    notes = frozenset().union(*{part.notes for part in parts})
    known = sum(part.visits is not None for part in parts)
    if 0 < known < len(parts):
        notes |= {"partly_missing"}
    answers: dict[Kind, tuple[int, ...]] = {}
    for part in parts:
        for kind, counts in part.answers.items():
            answers[kind] = longest(answers.get(kind, ()), counts)
    sales = taken_together([part.sales for part in parts])
    alike = all(part.matched is part.sales for part in parts)
    matched = sales if alike else taken_together([part.matched for part in parts])
    errors = [p.count_variance for p in parts if p.visits is not None]
    peaks = [p for p in parts if p.peak is not None]
    best = max(peaks, key=lambda p: p.peak or 0, default=None)
    return Inputs(
        visits=_sum([p.visits for p in parts]),
        exits=_sum([p.exits for p in parts]),
        passers=_sum([p.passers for p in parts]),
        groups=_sum([p.groups for p in parts]),
        observed_s=sum(p.observed_s for p in parts),
        expected_s=sum(p.expected_s for p in parts),
        sales=sales,
        matched=matched,
        due=_sum([p.due for p in parts]),
        staffed_hours=_sum([p.staffed_hours for p in parts]),
        shifts=_sum([p.shifts for p in parts]),
        answers=answers,
        responses=_whole([p.responses for p in parts]),
        asked=_sum([p.asked for p in parts]),
        inside_s=_sum([p.inside_s for p in parts]),
        inside_of_s=sum(p.inside_of_s for p in parts),
        stayed_s=_sum([p.stayed_s for p in parts]),
        stayers=_sum([p.stayers for p in parts]),
        peak=None if best is None else best.peak,
        peak_at=None if best is None else best.peak_at,
        tokens=tuple(visits for part in parts for visits in part.tokens),
        cohorts=tuple(cohort for part in parts for cohort in part.cohorts),
        count_variance=None if None in errors else sum(e for e in errors if e is not None),
        audited=any(p.audited for p in parts),
        notes=notes,
    )


def longest(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    width = max(len(one), len(other))
    return tuple(
        (one[n] if n < len(one) else 0) + (other[n] if n < len(other) else 0) for n in range(width)
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _whole(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


class Value(NamedTuple):
    """A KPI's value with its interval; numerator / denominator give it again, once scaled."""

    value: float | None
    low: float | None = None
    high: float | None = None
    flags: tuple[str, ...] = ()
    numerator: float | None = None
    denominator: float | None = None


# -- the formulas --------------------------------------------------------------------------------


def _nothing(*flags: str) -> Value:
    return Value(None, flags=flags)


def _worth(inputs: Inputs) -> tuple[str, ...]:
    """Return what is to be known about counts that a value rests on."""
    notes = inputs.notes
    flags = list[str]()
    if notes:
        flags += [n for n in ("partly_missing", "doors_changed") if n in notes]
    covered = inputs.coverage
    if covered is not None and covered < COMPLETE:
        flags.append("partial_coverage")
    if "counted_nobody" in notes:
        flags.append("counted_nobody")
    elif not inputs.audited or inputs.count_variance is None:
        flags.append("never_audited")
    return tuple(flags)


def _counted(count: float | None, inputs: Inputs) -> Value:
    """Return a count with the counter's error as its interval, none where it was never audited."""
    if count is None:
        return _nothing("not_measured")
    half = None if inputs.count_variance is None else relative_error(inputs)
    low = high = None
    if half is not None and inputs.audited:
        low, high = count * exp(-Z * half), count * exp(Z * half)
    return Value(count, low, high, _worth(inputs), count)


def relative_error(inputs: Inputs) -> float:
    """Return the counters' relative standard error of all these visits, 0 where nobody knows."""
    if not inputs.visits or not inputs.count_variance:
        return 0.0
    return sqrt(inputs.count_variance) / inputs.visits


def _missing_error(inputs: Inputs) -> float:
    """Return (1 - coverage) x the relative error of what stands for the uncovered part."""
    return (1 - (1.0 if inputs.coverage is None else inputs.coverage)) * IMPUTED_SE


def visits(inputs: Inputs) -> Value:
    return _counted(inputs.visits, inputs)


def exits(inputs: Inputs) -> Value:
    return _counted(inputs.exits, inputs)


def staff_estimated(inputs: Inputs) -> Value:
    if inputs.shifts is None:
        return _nothing("no_roster")
    count = inputs.shifts * CROSSINGS_PER_SHIFT
    return Value(count, flags=("crossings_assumed",), numerator=count)


def visits_net(inputs: Inputs) -> Value:
    """Return visits without staff, never below 0: as far off as the visits are, in people."""
    if inputs.visits is None:
        return _nothing("not_measured")
    if inputs.shifts is None:
        return _nothing("no_roster")
    staff, all_ = inputs.shifts * CROSSINGS_PER_SHIFT, _counted(inputs.visits, inputs)
    flags = (*all_.flags, "crossings_assumed")
    if inputs.visits < staff:
        return Value(0.0, flags=(*flags, "staff_clamped"), numerator=0.0)
    rest = inputs.visits - staff
    if all_.low is None or all_.high is None:
        return Value(rest, flags=flags, numerator=rest)
    return Value(rest, max(0.0, all_.low - staff), all_.high - staff, flags, rest)


def groups(inputs: Inputs) -> Value:
    """Return buying units: groups and people alone."""
    return (
        _nothing("groups_not_counted") if inputs.groups is None else _counted(inputs.groups, inputs)
    )


def turn_in_of_passers_only(inputs: Inputs) -> Value:
    """Return in / (passed only + in)."""
    if inputs.visits is None or inputs.passers is None:
        return _nothing("passers_not_counted" if inputs.passers is None else "not_measured")
    return _share(inputs.visits, inputs.visits + inputs.passers, inputs)


def turn_in_of_all(inputs: Inputs) -> Value:
    """Return in / all who passed."""
    if inputs.visits is None or inputs.passers is None:
        return _nothing("passers_not_counted" if inputs.passers is None else "not_measured")
    return _share(inputs.visits, inputs.passers, inputs)


def _share(part: float, whole: float, inputs: Inputs) -> Value:
    """Return part / whole with Wilson's interval; above 1 flagged, and without one."""
    flags = _worth(inputs)
    if whole <= 0:
        return Value(None, flags=(*flags, "nothing_to_divide_by"), numerator=part, denominator=0)
    if part > whole:
        flags = (*flags, "undercount_suspected")
        return Value(part / whole, flags=flags, numerator=part, denominator=whole)
    low, high = wilson_of(part, whole)
    return Value(part / whole, low, high, flags, part, whole)


def wilson_of(part: float, whole: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of counts that calibration may have made fractions."""
    return wilson(round(part), max(round(whole), 1))


def conversion(inputs: Inputs) -> Value:
    """Return T / visits, Var(ln C) = (1 - C) / T + ((1 - coverage) s_imp)^2 + s_cal^2."""
    if inputs.sales.currency is None:
        return _nothing("no_tills")
    if "dwell_too_long" in inputs.notes:
        return _nothing("dwell_too_long")
    base = inputs.visits if inputs.due is None else inputs.due
    return _per_visit(inputs, base, inputs.matched.transactions)


def conversion_of_groups(inputs: Inputs) -> Value:
    """Return T / U."""
    if inputs.groups is None:
        return _nothing("groups_not_counted")
    if inputs.sales.currency is None:
        return _nothing("no_tills")
    return _per_visit(inputs, inputs.groups, inputs.matched.transactions)


def _per_visit(inputs: Inputs, base: float | None, transactions: int) -> Value:
    if base is None:
        return _nothing("visits_missing")
    flags = _worth(inputs)
    if inputs.due is not None:
        flags = (*flags, *sorted(inputs.notes & {"dwell_assumed", "dwell_derived"}))
    if base <= 0:
        return Value(None, flags=(*flags, "no_visits"), numerator=transactions, denominator=0)
    error = hypot(_missing_error(inputs), relative_error(inputs))
    c, low, high = conversion_of(transactions, base, error=error)
    if c > 1:
        flags = (*flags, "undercount_suspected")
    return Value(c, low, high, flags, transactions, base)


def conversion_of(
    transactions: int, base: float, *, error: float = 0.0
) -> tuple[float, float | None, float | None]:
    """Return C = T / base with its 95 % interval, Var(ln C) = (1 - C) / T + error^2.

    (1 - C) / T is the binomial variance of ln C by the delta method; `error` is the relative
    standard error of the base. Without a sale there is no interval.
    """
    c = transactions / base
    if not transactions:
        return c, None, None
    half = Z * sqrt(max(0.0, 1 - c) / transactions + error**2)
    return c, c * exp(-half), c * exp(half)


def atv(inputs: Inputs) -> Value:
    """Return net sales / T, t interval of the mean."""
    sales = inputs.sales
    if not sales.currency:
        return _nothing(_no_money(sales))
    found = _mean(float(sales.net_sales), sales.net_squares, sales.transactions)
    return found._replace(flags=(*found.flags, *_converted(inputs)))


def upt(inputs: Inputs) -> Value:
    """Return units / T, t interval of the mean."""
    sales = inputs.sales
    if sales.currency is None:
        return _nothing("no_tills")
    return _mean(sales.units, sales.units_squares, sales.transactions)


def _converted(inputs: Inputs) -> tuple[str, ...]:
    return ("converted",) if "converted" in inputs.notes else ()


def _no_money(sales: Takings) -> str:
    return "no_tills" if sales.currency is None else "mixed_currencies"


def _mean(total: float, squares: float, n: int) -> Value:
    if n == 0:
        return Value(None, flags=("no_sales",), numerator=total, denominator=0)
    mean = total / n
    if n == 1:
        return Value(mean, numerator=total, denominator=n)
    half = student_t(n - 1) * sqrt(max(0.0, (squares - n * mean * mean) / (n - 1)) / n)
    return Value(mean, mean - half, mean + half, (), total, n)


def spv(inputs: Inputs) -> Value:
    """Return net sales / visits = C x ATV; its variance (log) is that of C plus that of ATV."""
    sales = inputs.matched
    if not inputs.sales.currency:
        return _nothing(_no_money(inputs.sales))
    if "dwell_too_long" in inputs.notes:
        return _nothing("dwell_too_long")
    net, n = float(sales.net_sales), sales.transactions
    c = conversion(inputs)
    if c.value is None:
        return c._replace(numerator=net if c.denominator is not None else None)
    value, flags = net / (c.denominator or 1), (*c.flags, *_converted(inputs))
    if c.low is None or net <= 0:
        return Value(value, None, None, flags, net, c.denominator)
    mean = net / n
    spread = max(0.0, (sales.net_squares - n * mean * mean) / (n - 1)) if n > 1 else 0.0
    half = sqrt((log(c.value) - log(c.low)) ** 2 + Z * Z * spread / (n * mean * mean))
    return Value(value, value * exp(-half), value * exp(half), flags, net, c.denominator)


def taken(pick: Callable[[Takings], float], *, money: bool = False) -> Callable[[Inputs], Value]:
    """Return the KPI that is a sum of what the tills say."""

    def compute(inputs: Inputs) -> Value:
        if inputs.sales.currency is None or (money and not inputs.sales.currency):
            return _nothing(_no_money(inputs.sales))
        count = pick(inputs.sales)
        return Value(count, flags=_converted(inputs) if money else (), numerator=count)

    return compute


def shopper_to_staff(inputs: Inputs) -> Value:
    """Return visits / rostered hours, with the counter's error."""
    if inputs.staffed_hours is None:
        return _nothing("no_roster")
    if inputs.visits is None:
        return _nothing("not_measured")
    if inputs.staffed_hours <= 0:
        return Value(None, flags=("nobody_rostered",), numerator=inputs.visits, denominator=0)
    base = _counted(inputs.visits, inputs)
    hours = inputs.staffed_hours
    return Value(
        inputs.visits / hours,
        None if base.low is None else base.low / hours,
        None if base.high is None else base.high / hours,
        base.flags,
        inputs.visits,
        hours,
    )


def peak_hour(inputs: Inputs) -> Value:
    """Return the visits of the busiest 60 minutes."""
    if inputs.peak is None:
        return _nothing("not_covered")
    return Value(inputs.peak, flags=_worth(inputs))


def dwell(inputs: Inputs) -> Value:
    """Return Little's W: the integral of occupancy / entries, in minutes."""
    if inputs.stayed_s is None or not inputs.stayers:
        return _nothing("not_measured")
    minutes, flags = inputs.stayed_s / 60, ("derived", *_worth(inputs))
    return Value(minutes / inputs.stayers, None, None, flags, minutes, inputs.stayers)


def occupancy(inputs: Inputs) -> Value:
    """Return the mean number of people inside, over the time in which that is known."""
    if inputs.inside_s is None or not inputs.inside_of_s:
        return _nothing("not_measured")
    mean, flags = inputs.inside_s / inputs.inside_of_s, ("derived", *_worth(inputs))
    return Value(mean, None, None, flags, inputs.inside_s, inputs.inside_of_s)


def asked_of(kind: Kind) -> Callable[[Inputs], Value]:
    """Return the KPI that is the index of questions of this kind."""

    def compute(inputs: Inputs) -> Value:
        counts = inputs.answers.get(kind)
        found = None if counts is None else index_of(kind, counts)
        pending = sorted(inputs.notes & {"filter_pending"})
        if found is None:
            return _nothing("no_answers", *pending)
        flags = (*(("interval_only",) if found.small else ()), *pending)
        return Value(found.value, found.low, found.high, flags, found.value * found.n, found.n)

    return compute


def response_rate(inputs: Inputs) -> Value:
    """Return answers / people who went out past the kiosk."""
    if inputs.responses is None:
        return _nothing("no_kiosk")
    if inputs.asked is None:
        return _nothing("exits_not_counted")
    of_these = Inputs(audited=True)  # a share of people seen go out, whatever else was missed
    return _share(float(inputs.responses), inputs.asked, of_these)


NOT_IDENTIFIABLE = "not_identifiable_from_doors"


def visit_frequency(inputs: Inputs) -> Value:
    """Return visits / holders: each holder once, however often they were met."""
    if not inputs.tokens:
        return _nothing(NOT_IDENTIFIABLE)
    n, met = len(inputs.tokens), sum(inputs.tokens)
    return Value(met / n, flags=("of_token_holders",), numerator=met, denominator=n)


def repeat_share(inputs: Inputs) -> Value:
    """Return the share of token holders who came more than once."""
    if not inputs.tokens:
        return _nothing(NOT_IDENTIFIABLE)
    n, again = len(inputs.tokens), sum(each > 1 for each in inputs.tokens)
    low, high = wilson(again, n)
    return Value(again / n, low, high, ("of_token_holders",), again, n)


def lifetime_value(inputs: Inputs) -> Value:
    """Return sum m_t S_t / (1 + i)^t of a token holder; of several cohorts each by its holders."""
    holders = sum(cohort.holders for cohort in inputs.cohorts)
    if not holders:
        return _nothing(NOT_IDENTIFIABLE)
    worth = sum(cohort.holders * _worth_of(cohort) for cohort in inputs.cohorts)
    return Value(worth / holders, None, None, ("of_token_holders",), worth, holders)


def _worth_of(cohort: Cohort) -> float:
    kept = survival(cohort.alpha, cohort.beta, periods=len(cohort.margins))
    rate = 1 + cohort.discount
    return sum(m * s / rate**t for t, (m, s) in enumerate(zip(cohort.margins, kept, strict=True)))


def survival(alpha: float, beta: float, *, periods: int) -> list[float]:
    """Return the share of customers still there at 0, 1, ... of a shifted beta-geometric model.

    S(0) = 1, S(t) = S(t-1) (beta + t - 1) / (alpha + beta + t - 1) (Fader and Hardie 2007).
    """
    found = [1.0]
    for t in range(1, periods):
        found.append(found[-1] * (beta + t - 1) / (alpha + beta + t - 1))
    return found[:periods]


LEAST_PEAK_COVERAGE = 0.9


def busiest_hour(
    quarters: Sequence[tuple[int, float | None, float | None]],
) -> tuple[int, float] | None:
    """Return the start and the visits of the busiest 60 minutes, of equals the earliest.

    `quarters` are (start, visits, coverage) of open quarters in order; four that follow on each
    other are an hour, and each must be covered to 90 %.
    """
    best: tuple[int, float] | None = None
    for n in range(len(quarters) - 3):
        four = quarters[n : n + 4]
        if four[3][0] - four[0][0] != 2_700:
            continue
        if any(count is None or (share or 0) < LEAST_PEAK_COVERAGE for _, count, share in four):
            continue
        total = sum(count or 0 for _, count, _ in four)
        if best is None or total > best[1]:
            best = four[0][0], total
    return best
