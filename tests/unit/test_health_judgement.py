"""What passes between the parts of health says what it is about, how bad it is and what to do."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from server.health.judgement import (
    MEANINGS,
    PLATFORM,
    Condition,
    Judgement,
    Standing,
    Subject,
    SubjectKind,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_every_condition_says_how_bad_it_is_and_what_to_try_first() -> None:
    assert set(MEANINGS) == set(Condition)
    for condition in Condition:
        meaning = condition.meaning
        for sentence in (meaning.title, meaning.cause, meaning.remedy):
            assert sentence.endswith("."), condition
            assert len(sentence.split()) >= 3, condition


def test_a_condition_is_a_code() -> None:
    for condition in Condition:
        assert condition.value.replace("_", "").isalpha()
        assert condition.value == condition.value.lower()


@pytest.mark.parametrize("kind", [kind for kind in SubjectKind if kind is not SubjectKind.PLATFORM])
def test_a_subject_is_a_row_of_its_table_and_the_platform_is_none(kind: SubjectKind) -> None:
    assert Subject(SubjectKind.PLATFORM) == PLATFORM
    assert Subject(kind, 7).row == 7
    for wrong in ((kind, 0), (kind, -1), (SubjectKind.PLATFORM, 1)):
        with pytest.raises(ValueError, match="cannot have row"):
            Subject(*wrong)


def test_what_is_affected_begins_before_it_ends() -> None:
    found = Judgement(PLATFORM, Condition.PLATFORM_UNKNOWN, Standing.FIRING, NOON, {}, NOON)
    assert replace(found, affected_until=NOON).affected_until == NOON
    for wrong in (
        {"affected_until": NOON - timedelta(seconds=1)},
        {"affected_from": None, "affected_until": NOON},
    ):
        with pytest.raises(ValueError, match="begins before it ends"):
            replace(found, **wrong)
