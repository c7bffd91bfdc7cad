"""What each KPI is: an id with its version, its formula in words, and the function that is it.

A KPI that comes to mean something else gets a new version and keeps its name; what was answered
under the old id stays what it was. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from server.errors import RefusedError
from server.feedback.indices import Kind
from server.insight import formulas
from server.insight.formulas import Inputs, Takings, Value


class Need(StrEnum):
    """What has to be read for a KPI."""

    VISITS = "visits"
    PASSERS = "passers"
    SALES = "sales"
    SPREAD = "spread"
    DUE = "due"
    STAFF = "staff"
    FEEDBACK = "feedback"
    RESPONSES = "responses"
    PEAK = "peak"
    STAY = "stay"


@dataclass(frozen=True, slots=True)
class Definition:
    """A KPI; additive ones have no denominator, all others are `scale` x numerator / denominator.

    `alone`: it means something for one site only. `days`: for whole days and longer only.
    """

    id: str
    unit: str
    formula: str
    inputs: tuple[str, ...]
    interval: str
    needs: frozenset[Need]
    compute: Callable[[Inputs], Value]
    additive: bool = False
    alone: bool = False
    days: bool = False
    projected: bool = True

    @property
    def name(self) -> str:
        return self.id.rsplit(".", 1)[0]

    @property
    def rollup(self) -> str:
        """How it is added up over sites and time."""
        if self.alone:
            return "of one site alone, over all of its time at once"
        if self.additive:
            return "sum over sites and time"
        return "ratio of sums over sites and time, never a mean of ratios"


class UnknownMetricError(RefusedError):
    """There is no KPI of this name or id."""

    def __init__(self, metric: str) -> None:
        self.parameter = "metrics"
        super().__init__("unknown_metric", f"no KPI {metric[:60]!r}; /v1/definitions lists them")


def find(metric: str) -> Definition:
    """Return a KPI by its id, or by its name: the latest version. Raises UnknownMetricError."""
    found = REGISTRY.get(metric) or REGISTRY.get(_LATEST.get(metric, ""))
    if found is None:
        raise UnknownMetricError(metric)
    return found


_COUNTER = (
    "95 %, of the counters' own error as recounts by eye found it; none without a recount, nor "
    "where all counters counted nobody in it (flagged counted_nobody)"
)
_WILSON = "95 %, Wilson"
_NONE = "none: a sum of what was recorded"
_T = "95 %, Student's t, of the mean"
_T_OF_ANSWERS = f"{_T}; of answers that are all alike Wilson's, the others at the scale's ends"
_PERIMETER = "people in at the outermost counter of each way in"
_TAKEN = "sale above 0 with one unit or more; no void, return or pick-up of what was paid before"


def _define(
    id_: str,
    unit: str,
    formula: str,
    inputs: str,
    interval: str,
    needs: tuple[Need, ...],
    compute: Callable[[Inputs], Value],
    *,
    additive: bool = False,
    alone: bool = False,
    days: bool = False,
    projected: bool = True,
) -> Definition:
    return Definition(
        *(id_, unit, formula, tuple(inputs.split("; ")), interval, frozenset(needs), compute),
        *(additive, alone, days, projected),
    )


def _taken(
    id_: str,
    unit: str,
    formula: str,
    inputs: str,
    pick: Callable[[Takings], float],
    *,
    money: bool = False,
) -> Definition:
    """Define a sum of what the tills recorded."""
    compute = formulas.taken(pick, money=money)
    return _define(id_, unit, formula, inputs, _NONE, (Need.SALES,), compute, additive=True)


REGISTRY: dict[str, Definition] = {
    each.id: each
    for each in (
        _define(
            "visits.v1",
            "people",
            "people in at a site's perimeter: doors side by side are added up; of doors in series "
            "the outermost that has a counter counts, so that nobody counts twice; counters for "
            "passages, zones and checkouts do not count; staff and children are among them",
            _PERIMETER,
            _COUNTER,
            (Need.VISITS,),
            formulas.visits,
            additive=True,
        ),
        _define(
            "exits.v1",
            "people",
            "people out at the counters that visits are counted at",
            "people out at the outermost counter of each way out",
            _COUNTER,
            (Need.VISITS,),
            formulas.exits,
            additive=True,
        ),
        _define(
            "staff_estimated.v1",
            "people",
            f"rostered shifts x {formulas.CROSSINGS_PER_SHIFT} times in per shift, where nobody "
            "wears a tag; an assumption, and never taken off the visits silently",
            "rostered shifts",
            "none: an assumption",
            (Need.STAFF,),
            formulas.staff_estimated,
            additive=True,
        ),
        _define(
            "visits_net.v1",
            "people",
            "visits - staff_estimated, not below 0 (flagged staff_clamped)",
            "visits; rostered shifts",
            "that of the visits less the staff, who are taken as they are; none where clamped",
            (Need.VISITS, Need.STAFF),
            formulas.visits_net,
            additive=True,
        ),
        _define(
            "groups.v1",
            "buying units",
            "groups + people alone, as counters tell them; a figure of its own, never called "
            "visits; null where no counter tells groups apart",
            "groups and people alone",
            _COUNTER,
            (),
            formulas.groups,
            additive=True,
            projected=False,
        ),
        _define(
            "turn_in_passers_only.v1",
            "share",
            "in / (passed without coming in + in), where the passage's counter counts those who "
            "pass by",
            "visits; people past the counters of passages, both ways",
            _WILSON,
            (Need.VISITS, Need.PASSERS),
            formulas.turn_in_of_passers_only,
        ),
        _define(
            "turn_in_of_all.v1",
            "share",
            "in / all who passed, where the passage's counter counts those who come in, too",
            "visits; people past the counters of passages, both ways",
            _WILSON,
            (Need.VISITS, Need.PASSERS),
            formulas.turn_in_of_all,
        ),
        _define(
            "occupancy.v1",
            "people",
            "mean number of people inside: the integral of occupancy, its drift taken out once "
            "the day is over, / observed time",
            "people inside by the quarter of an hour; observed seconds",
            "see /v1/occupancy: a band by the drift of the same weekday",
            (Need.VISITS, Need.STAY),
            formulas.occupancy,
            alone=True,
            projected=False,
        ),
        _define(
            "dwell.v1",
            "minutes",
            "mean stay, by Little's law: integral of occupancy over whole days / people in",
            "people inside by the quarter of an hour; visits",
            "none: derived from doors alone",
            (Need.VISITS, Need.STAY),
            formulas.dwell,
            days=True,
        ),
        _define(
            "conversion.v1",
            "share",
            "T / visits, T the transactions of the same site and time that count as sales; by the "
            "hour and finer, visits are shifted by how long people stay (lognormal, a median of "
            "12 minutes unless measured), and the value is null where the median is above "
            f"{formulas.MOST_DWELL_MIN} minutes; above 1 is answered, flagged, never clipped",
            f"visits; transactions ({_TAKEN})",
            "95 %, log scale: Var(ln C) = (1 - C)/T + (1 - coverage)^2 s_imp^2 + s_cal^2, s_cal "
            "the counters' relative standard error from recounts, s_imp that of what stands for "
            f"the uncovered part ({formulas.IMPUTED_SE:.0%})",
            (Need.VISITS, Need.SALES, Need.DUE),
            formulas.conversion,
        ),
        _define(
            "conversion_of_groups.v1",
            "share",
            "T / groups; null where no counter tells groups apart",
            "groups and people alone; transactions",
            "as conversion",
            (Need.VISITS, Need.SALES),
            formulas.conversion_of_groups,
            projected=False,
        ),
        _define(
            "atv.v1",
            "money",
            "average transaction value: net sales without VAT, after discounts / T",
            f"net sales; transactions ({_TAKEN})",
            _T,
            (Need.SALES, Need.SPREAD),
            formulas.atv,
        ),
        _define(
            "upt.v1",
            "units",
            "units per sale: units / T",
            "units; transactions",
            _T,
            (Need.SALES, Need.SPREAD),
            formulas.upt,
        ),
        _define(
            "spv.v1",
            "money",
            "sales per visit: net sales / visits = conversion x average transaction value",
            "net sales; visits",
            "95 %, log scale: the variance of conversion + that of the mean sale",
            (Need.VISITS, Need.SALES, Need.SPREAD, Need.DUE),
            formulas.spv,
        ),
        _taken(
            "transactions.v1",
            "sales",
            f"transactions that count: {_TAKEN}",
            "transactions",
            lambda sales: sales.transactions,
        ),
        _taken(
            "net_sales.v1",
            "money",
            "amounts of the transactions that count, without VAT, after discounts",
            "amounts",
            lambda sales: float(sales.net_sales),
            money=True,
        ),
        _taken(
            "units.v1",
            "units",
            "units of the transactions that count",
            "units",
            lambda sales: sales.units,
        ),
        _taken(
            "returns.v1",
            "returns",
            "transactions that are returns; never taken off the sales of the day they come back",
            "transactions",
            lambda sales: sales.returns,
        ),
        _taken(
            "pickups.v1",
            "pick-ups",
            "transactions that hand over what was paid before; no sale, no conversion",
            "transactions",
            lambda sales: sales.pickups,
        ),
        _define(
            "shopper_to_staff.v1",
            "visits per staffed hour",
            "visits / rostered hours",
            "visits; rostered hours",
            _COUNTER,
            (Need.VISITS, Need.STAFF),
            formulas.shopper_to_staff,
        ),
        _define(
            "peak_hour.v1",
            "people",
            "visits of the busiest 60 minutes, looked for every 15 minutes within opening hours "
            f"where coverage is {formulas.LEAST_PEAK_COVERAGE:.0%} or more; of equals the "
            "earliest; `at` says when it began",
            "visits and coverage by the quarter of an hour",
            "none: the largest of many",
            (Need.VISITS, Need.PEAK),
            formulas.peak_hour,
            alone=True,
            days=True,
            projected=False,
        ),
        _define(
            "smiley4_index.v1",
            "0 to 100",
            "(100 n4 + 66.67 n3 + 33.33 n2) / N, n4 the best of four smileys",
            "answers to questions with four smileys",
            _T_OF_ANSWERS,
            (Need.FEEDBACK,),
            formulas.asked_of(Kind.SMILEY4),
        ),
        _define(
            "smiley5_index.v1",
            "0 to 100",
            "(100 n5 + 75 n4 + 50 n3 + 25 n2) / N, n5 the best of five smileys",
            "answers to questions with five smileys",
            _T_OF_ANSWERS,
            (Need.FEEDBACK,),
            formulas.asked_of(Kind.SMILEY5),
        ),
        _define(
            "csat.v1",
            "%",
            "share of the best two of five answers",
            "answers from 1 to 5",
            _WILSON,
            (Need.FEEDBACK,),
            formulas.asked_of(Kind.CSAT),
        ),
        _define(
            "nps.v1",
            "-100 to 100",
            "% of answers 9 and 10 - % of answers 0 to 6",
            "answers from 0 to 10",
            "95 %, adjusted Wald: n + 3, 3/4 of a promoter and of a detractor more",
            (Need.FEEDBACK,),
            formulas.asked_of(Kind.NPS),
        ),
        _define(
            "ces.v1",
            "1 to 7",
            "mean of answers from 1 (disagree) to 7 (agree)",
            "answers from 1 to 7",
            _T_OF_ANSWERS,
            (Need.FEEDBACK,),
            formulas.asked_of(Kind.CES),
        ),
        _define(
            "response_rate.v1",
            "share",
            "answers to a kiosk's first question, as the filter of misuse left them, / people out "
            "at the kiosk's own door, or at the site's perimeter where it stands at no counted "
            "one; opening hours in which the exits were observed, on both sides",
            "answers; people out",
            _WILSON,
            (Need.RESPONSES,),
            formulas.response_rate,
        ),
        _define(
            "visit_frequency.v1",
            "visits per customer",
            "visits / customers, of holders of a consented token who came: n / sum(1/f) over their "
            "visits, f how often each comes, so that who is met often counts once all the same",
            "consented tokens",
            "none",
            (),
            formulas.visit_frequency,
            days=True,
            projected=False,
        ),
        _define(
            "repeat_share.v1",
            "share",
            "share of holders of a consented token who came more than once",
            "consented tokens",
            _WILSON,
            (),
            formulas.repeat_share,
            days=True,
            projected=False,
        ),
        _define(
            "customer_lifetime_value.v1",
            "money",
            "sum over t of m_t S_t / (1 + i)^t, m_t the margin of a period, S_t the share still "
            "a customer by a beta-geometric model, i the discount; of holders of a consented "
            "token only, each cohort by its holders",
            "consented tokens",
            "none",
            (),
            formulas.lifetime_value,
            days=True,
            projected=False,
        ),
    )
}
_LATEST = {each.name: each.id for each in REGISTRY.values()}
