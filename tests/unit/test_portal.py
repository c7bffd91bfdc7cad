"""The portal's rules that need no server: languages, comparisons, gaps."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.feedback.indices import Kind, smiley_index
from server.portal.frame import CATALOGUES
from server.portal.view import Cell, Question, bars_of, cell_of, compare, smileys_of
from server.rollup.answer import CountRow
from server.rollup.quality import Hours, State
from server.signin import pages as signin
from server.web import catalogue
from server.web.shell import local_path

NOON = datetime(2026, 11, 18, 12, 0, tzinfo=UTC)


def row(at: datetime, visits: int | None, *, coverage: float | None = 1.0) -> CountRow:
    """A quarter of an hour in an open shop."""
    until = at + timedelta(minutes=15)
    return CountRow(
        site="site-1",
        spot=None,
        start=at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        until=until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        local=at.isoformat(timespec="minutes"),
        fold=0,
        visits=visits,
        exits=visits,
        unplaced_visits=0,
        unplaced_exits=0,
        coverage=coverage,
        hours=Hours.OPEN,
        state=State.COMPLETE,
        revision=0,
        origin="device",
        calibrations=(),
    )


def quarters(day: datetime, visits: int | None, *, coverage: float | None = 1.0) -> list[CountRow]:
    """Eight quarters from 10 to 12."""
    start = day.replace(hour=10)
    return [row(start + timedelta(minutes=15 * n), visits, coverage=coverage) for n in range(8)]


@pytest.mark.parametrize(
    "folders", [CATALOGUES, [signin.HERE / "catalogues"]], ids=["portal", "signin"]
)
def test_every_language_says_everything_with_the_same_names_in_it(folders: list[Path]) -> None:
    loaded = catalogue.load([catalogue.SHARED, *folders])
    assert catalogue.problems(loaded) == []


def test_a_missing_text_is_found() -> None:
    loaded = catalogue.load([catalogue.SHARED, *CATALOGUES])
    swedish = {k: v for k, v in loaded["sv"].texts.items() if k != "coverage"}
    broken = loaded | {"sv": replace(loaded["sv"], texts=swedish | {"week": "Vecka"})}
    assert catalogue.problems(broken) == [
        "sv: coverage is missing",
        "sv: week has other names than English",
    ]


def test_the_words_of_the_field_are_used() -> None:
    loaded = catalogue.load([catalogue.SHARED, *CATALOGUES])
    assert [loaded[name].texts["coverage"] for name in ("sv", "da")] == ["Täckning", "Dækning"]
    assert [loaded[name].texts["visits"] for name in ("sv", "da")] == ["besök", "besøg"]
    assert [loaded[name].texts["spot"] for name in ("sv", "da")] == ["Mätpunkt", "Målepunkt"]


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("sv-SE,sv;q=0.9,en;q=0.8", "sv"), ("fr, da;q=0.5, en;q=0.4", "da"), ("x;q=y", "en")],
)
def test_the_readers_language_is_chosen(accepted: str, language: str) -> None:
    assert catalogue.choose(accepted) == language
    assert catalogue.choose(accepted, wished="da") == "da"


def test_numbers_and_days_are_written_as_in_the_language() -> None:
    swedish = catalogue.load([catalogue.SHARED])["sv"]
    assert swedish.number(12345) == "12\xa0345"
    assert swedish.percent(-0.034, signed=True) == "−3 %"
    assert swedish.week(NOON.date()) == "Vecka 47"
    assert swedish.day(NOON.date()) == "onsdag 18 november"


@pytest.mark.parametrize("wanted", ["//evil.example", "https://evil.example", "/\\evil", "/a\nb"])
def test_no_redirect_leads_elsewhere(wanted: str) -> None:
    assert local_path(wanted) == "/"
    assert local_path("/sites/site-1?day=2026-11-18") == "/sites/site-1?day=2026-11-18"


def test_today_is_compared_up_to_the_last_whole_quarter() -> None:
    before = quarters(NOON - timedelta(days=7), 50)
    found = compare(quarters(NOON, 60), before, until=NOON.replace(hour=11))
    assert (found.now, found.before) == (240, 200)
    assert found.change == pytest.approx(0.2)
    whole = compare(quarters(NOON, 12), quarters(NOON - timedelta(days=7), 10), until=NOON)
    assert whole.before == 80
    assert whole.change == pytest.approx(0.2)


def test_a_day_half_observed_is_not_compared() -> None:
    before = quarters(NOON - timedelta(days=7), 10)
    assert compare(quarters(NOON, 5, coverage=0.5), before, until=NOON).change is None
    assert compare([], before, until=NOON).change is None


def test_before_its_first_quarter_of_an_hour_is_over_a_day_is_early() -> None:
    before, today = quarters(NOON - timedelta(days=7), 10), quarters(NOON, 10)
    assert compare(today, before, until=NOON.replace(hour=10)).early
    assert not compare(today, before, until=NOON.replace(hour=10, minute=15)).early


def test_too_few_visits_are_not_compared() -> None:
    before = quarters(NOON - timedelta(days=7), 10)
    found = compare(quarters(NOON, 12), before, until=NOON.replace(hour=11))
    assert (found.now, found.before, found.change, found.covered) == (48, 40, None, True)
    before = quarters(NOON - timedelta(days=7), 3)
    assert compare(quarters(NOON, 12), before, until=NOON).change is None


def test_a_gap_is_a_gap_and_an_observed_zero_is_none() -> None:
    assert cell_of(row(NOON, None, coverage=0.0), now=NOON + timedelta(hours=1)) is Cell.GAP
    assert cell_of(row(NOON, 0), now=NOON + timedelta(hours=1)) is Cell.MEASURED
    assert cell_of(row(NOON, None, coverage=None), now=NOON) is Cell.REST
    bars = bars_of(quarters(NOON, None, coverage=0.0), now=NOON)
    assert [(bar.cell, bar.visits) for bar in bars] == [(Cell.GAP, None)] * 2


def test_smileys_are_added_up_over_questionnaires_and_have_the_index_of_their_sum() -> None:
    found = smileys_of(
        [
            Question("a", Kind.SMILEY4, (5, 1)),
            Question("a", Kind.NPS, (0, 0, 0, 9)),
            Question("b", Kind.SMILEY4, (1, 0, 0, 2)),
        ]
    )
    assert [presses for _, presses in found.faces] == [6, 1, 0, 2]
    assert found.presses == 9
    assert found.index == smiley_index([6, 1, 0, 2])


def test_a_questionnaires_second_smileys_and_unknown_questions_are_left_out() -> None:
    found = smileys_of(
        [
            Question("a", Kind.NPS, (0,) * 10 + (4,)),
            Question("a", Kind.SMILEY4, (1, 0, 0, 0)),
            Question("a", Kind.SMILEY4, (0, 0, 0, 7)),
            Question("b", None, (3, 3, 3, 3)),
            Question(None, None, ()),
        ]
    )
    assert (found.presses, found.index) == (1, smiley_index([1, 0, 0, 0]))


def test_five_faces_are_shown_as_five_where_they_were_pressed_most() -> None:
    few, many = Question("a", Kind.SMILEY4, (1,)), Question("b", Kind.SMILEY5, (4, 0, 3, 0, 1))
    found = smileys_of([few, many])
    assert found.faces == (("0", 4), ("1", 0), ("neutral", 3), ("2", 0), ("3", 1))
    assert found.index == smiley_index([4, 0, 3, 0, 1])


def test_where_nobody_pressed_there_is_no_index() -> None:
    assert smileys_of([]).index is None
    assert smileys_of([Question("a", Kind.SMILEY4, ())]).presses == 0
