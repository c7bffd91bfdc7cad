"""Batteries of statements: the budget, who is asked what, and what answers say."""

import random
from collections import Counter
from statistics import fmean

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from server.feedback import scores
from server.feedback.battery import (
    BUDGET_S,
    Battery,
    BatteryError,
    Factor,
    Item,
    ItemKind,
    answer_of,
    asked_seconds,
    check,
    content_of,
    digest,
    draw,
    seconds,
)
from server.feedback.surveys import battery_of

WORDS = "I found what I came for."


def battery(
    factors: int = 3,
    each: int = 3,
    *,
    shown: int = 6,
    text: str = WORDS,
    more: tuple[Item, ...] = (),
) -> Battery:
    """Return a battery in English whose statements are `f0_0`, `f0_1`, and so on."""
    return Battery(
        ["en"],
        {"en": "Your visit"},
        {"en": "The shop reads it each week."},
        [Factor(f"f{at}", {"en": f"Factor {at}"}) for at in range(factors)],
        [
            Item("overall", ItemKind.OVERALL, {"en": "All in all?"}),
            *(
                Item(f"f{at}_{n}", ItemKind.STATEMENT, {"en": text}, factor=f"f{at}")
                for at in range(factors)
                for n in range(each)
            ),
            *more,
        ],
        shown,
    )


TEXT = Item("words", ItemKind.TEXT, {"en": "Anything else?"})


def test_a_battery_over_the_budget_is_refused_with_the_sum_and_what_items_cost() -> None:
    fits = battery(more=(TEXT,))
    check(fits)
    assert asked_seconds(fits) <= BUDGET_S
    long = battery(text="w" * 120, more=(TEXT,))
    with pytest.raises(
        BatteryError, match=r"asked for 7\d\.\d s.*limit is 55 s.*f0_0 9\.6 s"
    ) as info:
        check(long)
    assert dict(info.value.costs)["f0_0"] == pytest.approx(2.4 + 0.06 * 120)
    assert len(info.value.costs) == len(long.items)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(5, 7), st.integers(0, 2**40))
def test_no_draw_takes_longer_than_what_the_builder_counts(
    factors: int, each: int, shown: int, seed: int
) -> None:
    made = battery(factors, each, shown=shown, more=(TEXT,))
    items = made.by_key
    drawn = draw(made, seed.to_bytes(8, "big"))
    assert sum(seconds(items[key]) for key in drawn) <= asked_seconds(made) + 1e-9
    assert drawn == draw(made, seed.to_bytes(8, "big"))
    statements = [key for key in drawn if items[key].kind is ItemKind.STATEMENT]
    assert len(set(statements)) == len(statements) == min(shown, factors * each)
    counts = Counter(items[key].factor for key in statements)
    assert max(counts.values()) - min(counts.get(f.key, 0) for f in made.factors) <= 1


def test_statements_of_a_factor_are_drawn_equally_often_and_all_pairs_meet() -> None:
    made = battery(3, 6, shown=6)
    seen: Counter[str] = Counter()
    pairs: Counter[frozenset[str]] = Counter()
    for seed in range(1_800):
        keys = [key for key in draw(made, seed.to_bytes(4, "big")) if key != "overall"]
        seen.update(keys)
        pairs.update(frozenset((a, b)) for a in keys for b in keys if a < b)
    assert len(seen) == 18
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4
    assert len(pairs) == 18 * 17 // 2


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"languages": ["xx"]}, "languages"),
        ({"languages": []}, "languages"),
        ({"languages": ["en", "sv"]}, "title"),
        ({"title": {"en": " "}}, "title"),
        ({"why": {"en": "w" * 601}}, "why"),
        ({"factors": []}, "factors"),
        ({"factors": [Factor("f0", {"en": "A"})] * 2}, "factors"),
        ({"factors": [Factor("Bad key", {"en": "A"})]}, "factors"),
        ({"shown": 4}, "shown"),
        ({"shown": 8}, "shown"),
        ({"items": []}, "factors"),
    ],
)
def test_a_battery_that_makes_no_sense_is_refused_by_its_field(
    change: dict[str, object], where: str
) -> None:
    with pytest.raises(BatteryError) as info:
        check(msgspec.structs.replace(battery(), **change))
    assert info.value.where == where


@pytest.mark.parametrize(
    "more",
    [
        (TEXT, msgspec.structs.replace(TEXT, key="more")),
        (Item("again", ItemKind.OVERALL, {"en": "All?"}),),
        (Item("f0_0", ItemKind.STATEMENT, {"en": "A"}, factor="f0"),),
        (Item("lost", ItemKind.STATEMENT, {"en": "A"}, factor="f9"),),
        (Item("who", ItemKind.CHOICE, {"en": "Who?"}, options=[{"en": "A"}]),),
        (msgspec.structs.replace(TEXT, options=[{"en": "A"}]),),
        (msgspec.structs.replace(TEXT, factor="f0"),),
    ],
)
def test_an_item_that_fits_nowhere_is_refused(more: tuple[Item, ...]) -> None:
    with pytest.raises(BatteryError):
        check(battery(more=more))


def test_a_version_is_known_by_its_content_alone() -> None:
    one = content_of(battery())
    assert content_of(msgspec.json.decode(one, type=Battery)) == one
    assert digest(one) != digest(content_of(battery(shown=7)))


@pytest.mark.parametrize("text", ["0", "6", "x", "³", "-1", "1.0", "100"])
def test_an_answer_off_the_scale_is_refused(text: str) -> None:
    with pytest.raises(BatteryError):
        answer_of(battery().by_key["f0_0"], text)
    assert answer_of(battery().by_key["f0_0"], "") is None
    assert answer_of(battery().by_key["f0_0"], "5") == 5


# -- what answers say ----------------------------------------------------------------------------


def told(
    n: int, *, seed: int = 1, betas: tuple[float, ...] = (1.0, 0.3, 0.0)
) -> list[dict[str, int]]:
    """Return answers of `n` visitors who were each asked 6 of 9, with known weights of factors."""
    rng, made = random.Random(seed), battery()
    answers: list[dict[str, int]] = []
    for visitor in range(n):
        common = rng.gauss(0, 0.3)
        level = [rng.gauss(3, 0.8) + common for _ in betas]
        row = {}
        for key in draw(made, f"{seed}-{visitor}".encode()):
            if key == "overall":
                value = 6 + sum(b * (x - 3) for b, x in zip(betas, level, strict=True))
                row[key] = min(10, max(0, round(value + rng.gauss(0, 0.5))))
            else:
                row[key] = min(5, max(1, round(level[int(key[1])] + rng.gauss(0, 0.5))))
        answers.append(row)
    return answers


def test_a_factors_score_is_the_mean_over_visitors_with_students_interval() -> None:
    made, answers = battery(), told(40)
    found = scores.factor_scores(made, answers)["f1"]
    means = [
        fmean([v for k, v in row.items() if k.startswith("f1")])
        for row in answers
        if any(k.startswith("f1") for k in row)
    ]
    low, high = stats.t.interval(0.95, len(means) - 1, fmean(means), stats.sem(means))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(
        (fmean(means), low, high), abs=1e-4
    )
    assert found.n == len(means)
    assert scores.factor_scores(made, [])["f1"] is None


def test_visitors_who_all_say_the_same_are_no_certainty() -> None:
    made = battery()
    answers = [{"overall": 10, "f1_0": 4, "f1_1": 4}] * 3
    found, overall = scores.factor_scores(made, answers)["f1"], scores.overall_score(made, answers)
    like = stats.binomtest(3, 3).proportion_ci(method="wilson").low
    assert found is not None
    assert overall is not None
    assert (found.value, overall.value, overall.high) == (4, 10, 10)
    assert found.low == pytest.approx(4 * like + 1 * (1 - like))
    assert found.high == pytest.approx(4 * like + 5 * (1 - like))
    assert overall.low == pytest.approx(10 * like)


def test_who_agrees_with_a_reversed_statement_speaks_against_the_factor() -> None:
    made = battery(1, 2, shown=2)
    turned = msgspec.structs.replace(
        made, items=[*made.items[:2], msgspec.structs.replace(made.items[2], reverse=True)]
    )
    assert scores.means_of(turned, {"f0_0": 5, "f0_1": 1}) == {"f0": 5.0}


def test_alpha_is_cronbachs_where_all_answered_all() -> None:
    made, rng = battery(1, 3, shown=5), random.Random(4)
    rows = [
        {f"f0_{at}": min(5, max(1, round(level + rng.gauss(0, 0.7)))) for at in range(3)}
        for level in (rng.gauss(3, 1) for _ in range(120))
    ]
    data = np.array([list(row.values()) for row in rows], dtype=float)
    alpha = 3 / 2 * (1 - data.var(axis=0, ddof=1).sum() / data.sum(axis=1).var(ddof=1))
    s = np.cov(data, rowvar=False)
    loads = [  # one factor and three items: a closed form
        (s[0, 1] * s[0, 2] / s[1, 2]) ** 0.5,
        (s[0, 1] * s[1, 2] / s[0, 2]) ** 0.5,
        (s[0, 2] * s[1, 2] / s[0, 1]) ** 0.5,
    ]
    omega = sum(loads) ** 2 / (sum(loads) ** 2 + sum(s[i, i] - loads[i] ** 2 for i in range(3)))
    found = scores.reliability(made, "f0", rows)
    assert found.alpha == pytest.approx(alpha)
    assert found.omega == pytest.approx(omega, abs=1e-6)
    assert found.n == 120


def test_reliability_is_none_while_too_few_answered_two_statements() -> None:
    made = battery()
    few = scores.reliability(made, "f0", told(40))
    assert few.alpha is None
    assert few.omega is None
    assert few.n < scores.LEAST_RELIABILITY
    many = scores.reliability(made, "f0", told(400))
    assert many.alpha is not None
    assert 0.5 < many.alpha < 1
    assert many.n < 400  # who was not asked is not counted
    alone = scores.reliability(battery(2, 1, shown=2), "f0", [{"f0_0": 3}] * 90)
    assert alone.alpha is None


def test_drivers_are_refused_below_two_hundred_and_where_all_say_the_same() -> None:
    assert scores.drivers(battery(), told(199), seed=1).refused == "too_few"
    same = [{**row, "overall": 7} for row in told(260)]
    assert scores.drivers(battery(), same, seed=1).refused == "no_variation"
    apart = [{"overall": i % 10, f"f{i % 3}_0": i % 5 + 1} for i in range(300)]
    assert scores.drivers(battery(), apart, seed=1).refused == "seldom_together"


def test_drivers_find_what_moves_the_overall_score_and_say_how_sure_that_is() -> None:
    found = scores.drivers(battery(), told(1_500), seed=3)
    gains = {each.factor: each for each in found.gains}
    assert found.gains[0].factor == "f0"
    assert gains["f0"].low > gains["f1"].high
    assert gains["f1"].low > 0
    assert gains["f2"].low < 0.08
    assert found.penalty > 0
    assert found == scores.drivers(battery(), told(1_500), seed=3)


def test_the_gain_is_ridge_regression_where_all_answered_all() -> None:
    rng = random.Random(8)
    made = battery(2, 1, shown=2)
    rows = [
        {"f0_0": rng.randint(1, 5), "f1_0": rng.randint(1, 5), "overall": 0} for _ in range(300)
    ]
    for row in rows:
        row["overall"] = min(10, row["f0_0"] + rng.randint(0, 4))
    found = scores.drivers(made, rows, seed=1)
    x = np.array([[row["f0_0"], row["f1_0"]] for row in rows], dtype=float)
    y = np.array([row["overall"] for row in rows], dtype=float)
    x, y = x - x.mean(axis=0), y - y.mean()
    wanted = np.linalg.solve(x.T @ x + found.penalty * 299 * np.eye(2), x.T @ y)
    assert {each.factor: each.gain for each in found.gains} == {
        "f0": pytest.approx(wanted[0]),
        "f1": pytest.approx(wanted[1]),
    }


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 12)))
def test_a_group_of_fewer_than_five_never_shows_not_even_by_subtraction(
    counts: dict[str, int],
) -> None:
    shown = scores.kept(counts)
    assert all(counts[key] >= 5 for key in shown)
    hidden = sum(n for key, n in counts.items() if key not in shown)
    assert hidden == 0 or hidden >= 5 or not shown


def test_the_p90_is_an_estimate_until_two_hundred_answers() -> None:
    taken = scores.seconds_taken(list(range(1, 11)))
    assert taken is not None
    assert (taken.median, taken.p90, taken.n, taken.estimate) == (5.5, 9, 10, True)
    many = scores.seconds_taken([30.0] * 200)
    assert many is not None
    assert not many.estimate
    assert scores.seconds_taken([]) is None


def test_a_version_is_read_once() -> None:
    content = content_of(battery())
    again = content_of(battery())
    assert again is not content
    assert battery_of(again) is battery_of(content)
    assert battery_of(content) == battery()
