"""Opening hours as people write them."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fleet import hours
from server.fleet.checks import FieldError
from server.fleet.doors import demand_no_circle
from server.fleet.hours import ALWAYS, Opening, OwnDay


def test_a_common_week_is_read() -> None:
    found = hours.read("Mo-Fr 10:00-19:00; Sa 10:00-17:00; Su off")
    assert found.weekly == (*[((600, 1140),)] * 5, ((600, 1020),), ())
    assert hours.write(found) == "Mo-Fr 10:00-19:00; Sa 10:00-17:00"


def test_several_spans_and_past_midnight_are_read() -> None:
    found = hours.read("Mo,We 15:00-19:00,10:00-14:00; Fr 22:00-02:00; Sa 22:00-26:00")
    assert found.weekly is not None
    assert found.weekly[0] == found.weekly[2] == ((600, 840), (900, 1140))
    assert found.weekly[4] == found.weekly[5] == ((1320, 1560),)
    assert hours.read("Sa-Mo 10:00-11:00").weekly == (
        *(((600, 660),), (), (), (), (), ((600, 660),), ((600, 660),)),
    )


def test_days_of_their_own_are_read() -> None:
    found = hours.read('24/7; 2026-12-25 off; 2026-12-24 10:00-14:00 "Christmas; Eve"')
    assert found == Opening(
        None,
        (OwnDay(date(2026, 12, 24), ((600, 840),), "Christmas; Eve"), OwnDay(date(2026, 12, 25))),
    )
    assert hours.read("") == hours.read("24/7") == ALWAYS


def test_a_later_rule_replaces_the_earlier_one() -> None:
    assert hours.write(hours.read("Mo-Su 10:00-19:00; Su off")) == "Mo-Sa 10:00-19:00"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("PH off", "'PH' is no weekday"),
        ("Jan-Mar 10:00-19:00", "'Jan-Mar' is no weekday"),
        ("Mo sunrise-sunset", "is no time"),
        ("Mo-Fr", "expected days and hours"),
        ("Mo 10:00", "expected hours such as"),
        ("Mo 10:00-25:61", "is no time"),
        ("Mo 10:00-49:00", "is no time"),
        ("Mo 30:00-31:00", "is no span of a day"),
        ("Mo 10:00-14:00,13:00-19:00", "two spans overlap at 13:00"),
        ("Mo-Su off", "no day has hours"),
        ("24/7; Mo 10:00-19:00", "contradict"),
        ("2026-02-30 off", "expected a day"),
        ('Mo 10:00-19:00 "note"', "only a date"),
        ('2026-12-24 off "open', "not closed"),
        ("mo 10:00-19:00", "is no weekday"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(FieldError, match=says) as caught:
        hours.read(text)
    assert caught.value.parameter == "hours"


@st.composite
def spans(draw: st.DrawFn) -> tuple[hours.Span, ...]:
    edges: list[int] = sorted(draw(st.sets(st.integers(0, 1439), max_size=6)))
    found = [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=False)]
    late: int = draw(st.integers(0, 1440))
    if found and late:
        low, high = found.pop()
        found.append((low, min(high + late, 2880)))
    return tuple(found)


weeks = st.one_of(st.none(), st.tuples(*[spans()] * 7).filter(lambda week: any(week)))
notes = st.text("abc åäö;,=", max_size=12).map(lambda text: " ".join(text.split()))
openings = st.builds(
    lambda week, own: Opening(week, tuple(OwnDay(day, *rest) for day, rest in sorted(own.items()))),
    weeks,
    st.dictionaries(
        st.dates(date(1990, 1, 1), date(2100, 1, 1)), st.tuples(spans(), notes), max_size=4
    ),
)


@given(openings)
def test_what_is_written_is_read_as_the_same(opening: Opening) -> None:
    assert hours.read(hours.write(opening)) == opening


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = hours.read(text)
    except FieldError:
        return
    assert hours.read(hours.write(found)) == found


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([*"abcdef", None]), max_size=6))
def test_doors_behind_each_other_never_form_a_circle(wanted: dict[str, str | None]) -> None:
    behind: dict[str, str | None] = {}
    for door, other in wanted.items():
        try:
            demand_no_circle({**behind, door: other}, door)
        except FieldError:
            continue
        behind[door] = other
    for door in behind:
        at: str | None = door
        for _ in range(len(behind) + 1):
            at = behind.get(at) if at is not None else None
        assert at is None
