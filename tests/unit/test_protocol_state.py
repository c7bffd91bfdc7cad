"""What a device and the server say of its state: every value comes back, nonsense is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.content import ContentError
from protocol.settings import TABLE
from protocol.state import (
    COMMANDS,
    MAX_ANSWER,
    MAX_COMMANDS,
    MAX_HEARD,
    MAX_NUMBER,
    MAX_REPORT,
    MAX_RESULT,
    Answer,
    Order,
    Outcome,
    Report,
    read_answer,
    read_report,
    write_answer,
    write_report,
)

NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
REFS = st.from_regex(r"cmd-[a-z0-9]{8}", fullmatch=True)
NUMBERS = st.integers(0, MAX_NUMBER)
VALUES = st.one_of(TEXTS, st.integers(-MAX_NUMBER, MAX_NUMBER))
OUTCOMES = st.builds(
    Outcome,
    REFS,
    st.sampled_from(["running", "done", "failed"]),
    TEXTS,
    st.dictionaries(NAMES, VALUES, max_size=MAX_RESULT),
)
REPORTS = st.builds(
    Report,
    TEXTS,
    TEXTS,
    NUMBERS,
    st.lists(NAMES, max_size=8).map(tuple),
    st.dictionaries(NAMES, VALUES, max_size=8),
    st.dictionaries(NAMES, st.tuples(NUMBERS, TEXTS), max_size=4),
    st.lists(OUTCOMES, max_size=3).map(tuple),
)
ANSWERS = st.builds(
    Answer,
    NUMBERS,
    st.dictionaries(st.sampled_from(sorted(TABLE)), st.tuples(VALUES, NUMBERS)),
    st.integers(1, 3_600),
    st.lists(
        st.builds(
            Order, REFS, st.sampled_from(COMMANDS), st.integers(0, 604_800), st.integers(0, 200)
        ),
        max_size=MAX_COMMANDS,
    ).map(tuple),
    st.lists(REFS, max_size=MAX_HEARD).map(tuple),
    st.lists(REFS, max_size=MAX_HEARD).map(tuple),
)


@given(REPORTS)
def test_a_report_comes_back_as_it_was(report: Report) -> None:
    assert read_report(write_report(report).encode()) == report


@given(ANSWERS)
def test_an_answer_comes_back_as_it_was(answer: Answer) -> None:
    assert read_answer(write_answer(answer).encode()) == answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = (
    *("version", "settings", "confirm_s", "commands", "heard", "withdrawn"),
    *("values", "refused", "known"),
)


@given(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()))
def test_nonsense_is_refused_and_raises_nothing_else(content: bytes) -> None:
    for read in (read_report, read_answer):
        try:
            read(content)
        except ContentError:
            continue


@given(st.sampled_from(FIELDS), JSON)
def test_one_field_of_nonsense_is_refused_and_raises_nothing_else(name: str, value: Any) -> None:
    good_answer = json.loads(write_answer(Answer(1, {"health_s": (60, 1)}, 300)))
    good_report = json.loads(write_report(Report("a", "b", 1, (), {}, {})))
    for read, good in ((read_answer, good_answer), (read_report, good_report)):
        try:
            read(json.dumps({**good, name: value}).encode())
        except ContentError:
            continue


def test_what_is_not_known_yet_is_passed_over() -> None:
    good = json.loads(write_answer(Answer(1, {"health_s": (60, 1)}, 300)))
    later = {**good, "more": [1], "settings": {**good["settings"], "colour": ["red", 2]}}
    assert read_answer(json.dumps(later).encode()) == Answer(1, {"health_s": (60, 1)}, 300)
    said = json.loads(write_report(Report("a", "b", 1, ("x",), {"x": 1})))
    assert read_report(json.dumps({**said, "more": 1}).encode()).values == {"x": 1}


@pytest.mark.parametrize(("read", "most"), [(read_report, MAX_REPORT), (read_answer, MAX_ANSWER)])
def test_what_is_endless_is_not_read(read: Any, most: int) -> None:
    with pytest.raises(ContentError):
        read(b" " * (most + 1))
