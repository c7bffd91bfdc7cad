"""Before and after: a change that controls share is none, and the interval holds what it says."""

import random

import pytest
from scipy import stats

from server.feedback.comparison import Period, compared
from server.feedback.indices import Kind, smiley_index


def drawn(rng: random.Random, share: float, n: int = 200) -> tuple[int, ...]:
    bad = sum(rng.random() < share for _ in range(n))
    return (n - bad, 0, 0, bad)


def test_the_net_change_is_what_a_line_through_the_controls_does_not_foresee() -> None:
    others = {
        f"c{n}": Period((60 + 4 * n, 0, 0, 40 - 4 * n), (70 + 3 * n + n % 2, 0, 0, 30 - 3 * n))
        for n in range(7)
    }
    found = compared(Kind.SMILEY4, Period((60, 0, 0, 40), (90, 0, 0, 10)), others)
    assert found is not None
    assert found.expected is not None
    assert found.net is not None
    assert found.net_low is not None
    assert found.net_high is not None
    stood = [smiley(each.before) for each in others.values()]
    changes = [smiley(each.after) - smiley(each.before) for each in others.values()]
    line = stats.linregress(stood, changes)
    expected = line.intercept + line.slope * 60
    assert found.change == pytest.approx(30)
    assert found.expected == pytest.approx(expected)
    assert found.net == pytest.approx(30 - expected)
    own = (found.high - found.low) / (2 * stats.norm.ppf(0.975))
    rest = [y - line.intercept - line.slope * x for x, y in zip(stood, changes, strict=True)]
    spread = max(own, (sum(each**2 for each in rest) / 5) ** 0.5)
    across = sum((x - sum(stood) / 7) ** 2 for x in stood)
    half = stats.t.ppf(0.975, 5) * spread * (1 + 1 / 7 + (60 - sum(stood) / 7) ** 2 / across) ** 0.5
    assert (found.net_high - found.net_low) / 2 == pytest.approx(half, rel=1e-3)
    assert len(found.controls) == 7


def test_a_change_at_the_end_of_the_scale_is_as_unsure_as_it_is() -> None:
    best = Period((97, 1, 1, 1), (50, 0, 0, 0))
    found = compared(Kind.SMILEY4, best, {})
    assert found is not None
    values = [100.0] * 97 + [200 / 3, 100 / 3, 0.0]
    before = stats.t.ppf(0.975, 99) * stats.sem(values)
    wilson = stats.binomtest(50, 50).proportion_ci(method="wilson")
    after = 100 * (wilson.high - wilson.low) / 2
    assert found.high - found.low == pytest.approx(2 * (before**2 + after**2) ** 0.5)


def test_where_nearly_all_are_content_nothing_is_found_where_nothing_was_done() -> None:
    """One answer in fifty is bad, everywhere and always: many periods have none at all."""
    rng, held, changed, rounds = random.Random(5), 0, 0, 200
    for _ in range(rounds):
        sites = [Period(drawn(rng, 0.02, 60), drawn(rng, 0.02, 60)) for _ in range(12)]
        found = compared(Kind.SMILEY4, sites[0], {f"s{n}": s for n, s in enumerate(sites[1:])})
        assert found is not None
        assert found.net_low is not None
        assert found.net_high is not None
        held += found.net_low <= 0 <= found.net_high
        changed += found.low <= 0 <= found.high
    assert held / rounds >= 0.93
    assert changed / rounds >= 0.93


def smiley(counts: tuple[int, ...]) -> float:
    found = smiley_index(counts)
    assert found is not None
    return found.value


def test_without_controls_nothing_is_said_to_be_the_actions_doing() -> None:
    period = Period((80, 0, 0, 20), (90, 0, 0, 10))
    found = compared(Kind.SMILEY4, period, dict.fromkeys("abcd", period))
    assert found is not None
    assert (found.expected, found.net, found.net_low, found.net_high) == (None,) * 4
    assert found.change == pytest.approx(10)


def test_too_few_answers_are_no_comparison() -> None:
    assert compared(Kind.SMILEY4, Period((29,), (100,)), {}) is None
    assert compared(Kind.SMILEY4, Period((100,), ()), {}) is None
    assert compared(Kind.CHOICE, Period((100,), (100,)), {}) is None


def test_the_worst_of_many_gets_better_by_itself_and_the_controls_say_so() -> None:
    """Nothing is done anywhere, at the worst. Its change misleads, `net` does not."""
    rng, plain, net, held = random.Random(8), 0.0, 0.0, 0
    rounds = 120
    for _ in range(rounds):
        true = [min(0.9, max(0.05, rng.gauss(0.25, 0.02))) for _ in range(24)]
        sites = [Period(drawn(rng, share, 80), drawn(rng, share, 80)) for share in true]
        worst = max(range(24), key=lambda number: sites[number].before[3])
        others = {f"s{n:02}": site for n, site in enumerate(sites) if n != worst}
        found = compared(Kind.SMILEY4, sites[worst], others)
        assert found is not None
        assert found.net is not None
        assert found.net_low is not None
        assert found.net_high is not None
        plain, net = plain + found.change / rounds, net + found.net / rounds
        held += found.net_low <= 0 <= found.net_high
    assert plain > 6  # what a naive before and after would have boasted of
    assert abs(net) < plain / 4
    assert held / rounds >= 0.93
