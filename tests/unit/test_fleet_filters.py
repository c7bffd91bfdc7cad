"""The language that devices are searched by."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.fleet import versions
from server.fleet.filters import (
    FIELDS,
    MOST_CHARACTERS,
    MOST_COMPARISONS,
    MOST_DEPTH,
    Compare,
    Either,
    Every,
    Filter,
    FilterError,
    Not,
    Op,
    Value,
    parse,
    printed,
    value_of,
)
from tests.filter_trees import leaves, trees, values

ANY = trees(st.sampled_from(sorted(FIELDS)).flatmap(lambda name: leaves(name, values(name))))
SCRAPS = (
    *(*FIELDS, *Op, "and", "or", "not", "in", "none"),
    *("(", ")", ",", '"', "\\", "a", "2.4", "1d", " "),
)
NUMBERS = st.lists(st.integers(0, 999), min_size=1, max_size=4)


def test_an_operators_question_is_read() -> None:
    found = parse('model = "DC2" and state = offline and site.region = "Skåne" and firmware < 2.4')
    assert found == Every(
        (
            Compare("model", Op.IS, Value("DC2", "DC2")),
            Compare("state", Op.IS, Value("offline", "offline")),
            Compare("site.region", Op.IS, Value("Skåne", "Skåne")),
            Compare("firmware", Op.LESS, Value("2.4", (2, 4, 0, 0, 4, 0))),
        )
    )


def test_and_binds_closer_than_or_and_not_closer_than_both() -> None:
    a, b, c = (Compare("model", Op.IS, Value(text, text)) for text in "abc")
    assert parse("model=a or model=b and model=c") == Either((a, Every((b, c))))
    assert parse("not model=a and model=b") == Every((Not(a), b))
    assert parse("NOT (model=a OR model=b)") == Not(Either((a, b)))


def test_an_empty_filter_is_every_device() -> None:
    assert parse("  ") == Every()
    assert printed(Every()) == ""


def test_a_choice_may_be_written_with_strokes() -> None:
    assert parse("state = no_data") == parse('state = "no data"') == parse("state = No-Data")


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("modell = a", 1, "no field `modell`; known: device, serial, model"),
        ("model = ", 9, "expected a value, in quotes or of one word, got the end"),
        ("model < a", 7, "`=`, `!=`, `~`, `!~`, `in` or `not in` with `model`, which is a text"),
        ("model a", 7, "expected `=`"),
        ("state = broken", 9, "expected one of healthy, no data"),
        ("firmware < new", 12, "expected a version such as 2.4"),
        ("silent > 2", 10, "expected a duration such as 15m"),
        ("heard > yesterday", 9, "expected a time such as"),
        ("certificate.days < soon", 20, "expected a number"),
        ('model = "DC2', 9, "expected a closing quote"),
        ('model = "a\\n"', 9, "after each backslash"),
        ("(model = a", 11, "expected `and`, `or` or `)`, got the end"),
        ("model = a)", 10, "expected `and`, `or` or the end, got `)`"),
        ("model in a", 10, "expected `(`"),
        ("model in (a b)", 13, "expected `,` or `)`"),
        ("model not a", 11, "expected `in`"),
        ("and model = a", 1, "expected a field, `not` or `(`"),
        ("firmware < none", 12, "`none` goes with `=` and `!=`"),
        ("model in (none)", 11, "expected a value"),
        ("model = a; drop table devices", 10, "expected a field, a value or a sign, got `;`"),
        ("model = \0", 9, "no text has this character"),
        ('model = ""', 9, "expected at least one character"),
    ],
)  # fmt: skip
def test_an_error_names_the_position_and_what_was_expected(
    text: str, position: int, expected: str
) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert caught.value.position == position, str(caught.value)
    assert expected in str(caught.value)


def test_length_depth_and_comparisons_are_capped() -> None:
    parse("(" * MOST_DEPTH + "model=a" + ")" * MOST_DEPTH)
    for text in (
        "(" * (MOST_DEPTH + 1) + "model=a" + ")" * (MOST_DEPTH + 1),
        "not " * (MOST_DEPTH + 1) + "model=a",
        " or ".join(["kind=kiosk"] * (MOST_COMPARISONS + 1)),
        "model = " + "a" * MOST_CHARACTERS,
    ):
        with pytest.raises(FilterError, match="expected at most"):
            parse(text)


@given(ANY)
def test_what_is_printed_is_read_as_it_was(tree: Filter) -> None:
    text = printed(tree)
    assume(len(text) <= MOST_CHARACTERS)
    assert parse(text) == tree


@given(st.text(max_size=60) | st.lists(st.sampled_from(SCRAPS), max_size=20).map(" ".join))
def test_any_text_is_read_or_refused_with_a_position_within_it(text: str) -> None:
    refused: FilterError | None = None
    try:
        assert parse(printed(parse(text))) == parse(text)
    except FilterError as error:
        refused = error
    assert refused is None or 1 <= refused.position <= len(text) + 1


@given(NUMBERS, NUMBERS)
def test_versions_compare_as_numbers_do(left: list[int], right: list[int]) -> None:
    one, other = (versions.key(".".join(map(str, each))) for each in (left, right))
    assert one is not None
    assert other is not None
    padded = [[*each, *[0] * (4 - len(each))] for each in (left, right)]
    assert (one < other) == (padded[0] < padded[1])
    assert (one == other) == (padded[0] == padded[1])


def test_a_version_comes_after_its_candidates() -> None:
    in_order = ["2.4-dev1", "2.4.0a1", "v2.4-beta", "2.4rc1", "2.4-rc.2", "2.4", "2.4.1", "2.10"]
    keys = [versions.key(text) for text in in_order]
    assert None not in keys
    assert keys == sorted(keys)  # type: ignore[type-var]
    assert versions.key("2.4.0") == versions.key("2.4") == versions.key("2.4+build7")
    assert [versions.key(text) for text in ("", "new", "1.2.3.4.5", "2.4-alfa")] == [None] * 4


def test_durations_and_instants_are_what_they_say() -> None:
    assert value_of(FIELDS["silent"], "2h").typed == timedelta(hours=2)
    assert value_of(FIELDS["heard"], "2026-03-29T09:00+02:00").typed == datetime(
        2026, 3, 29, 7, tzinfo=UTC
    )
