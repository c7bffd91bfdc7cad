"""What a device and the server say of updates: each value comes back, nonsense is refused."""

import dataclasses
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.content import ContentError, Fault, canonical
from protocol.update import (
    MAX_ANSWER,
    MAX_CANCELLED,
    MAX_COMPONENTS,
    MAX_REPORT,
    MAX_SEQ,
    MAX_STEPS,
    MAX_TAIL,
    Answer,
    Attempt,
    Class,
    Component,
    Phase,
    Report,
    Step,
    read_answer,
    read_report,
    signed_message,
    write_answer,
    write_report,
)

EXECUTIONS = st.from_regex(r"exe-[a-z0-9]{8}", fullmatch=True)
ATTEMPTS = st.builds(Attempt, EXECUTIONS, st.integers(1, 1_000))
NONCES = st.binary(min_size=16, max_size=16).map(bytes.hex)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
VERSIONS = st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(rc[0-9])?", fullmatch=True)
CODES = st.just("") | st.from_regex(r"[a-z][a-z0-9_.-]{0,63}", fullmatch=True)
TAILS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=MAX_TAIL)
FAILED = {Phase.FAILED, Phase.REJECTED, Phase.REVERTED}
KINDS = {Phase.REVERTED: st.none() | st.sampled_from(Class)}


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, ...]:
    """Steps of some attempts, each attempt's in rising order, the attempts mixed."""
    last: dict[Attempt, int] = {}
    made = []
    attempts = draw(st.lists(ATTEMPTS, min_size=1, max_size=3))
    for attempt in draw(st.lists(st.sampled_from(attempts), max_size=8)):
        last[attempt] = last.get(attempt, 0) + draw(st.integers(1, 3))
        phase = draw(st.sampled_from(Phase))
        sure = st.sampled_from(Class) if phase in FAILED else st.none()
        size, at_ms = draw(st.integers(0, 1 << 40)), draw(st.integers(0, 1 << 48))
        kind = draw(KINDS.get(phase, sure))
        tail = draw(TAILS) if phase in (Phase.FAILED, Phase.REVERTED) else ""
        made.append(Step(attempt, last[attempt], phase, draw(CODES), kind, size, at_ms, tail))
    return tuple(made)


REPORTS = st.builds(
    Report,
    st.from_regex(r"dc-[a-z0-9]{12}", fullmatch=True),
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64),
    NONCES,
    st.just("") | NONCES,
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{0,15}", fullmatch=True),
        st.builds(Component, VERSIONS, st.just("") | DIGESTS, st.just("") | VERSIONS),
        max_size=MAX_COMPONENTS,
    ),
    st.sampled_from(["a", "b", "slot-7"]),
    st.none() | ATTEMPTS,
    st.booleans(),
    steps(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
ENVELOPES = st.dictionaries(
    st.text(max_size=9), st.text(max_size=9) | st.integers() | st.none(), max_size=4
).map(canonical)
ANSWERS = st.builds(
    Answer,
    NONCES,
    st.integers(1, 604_800),
    st.dictionaries(ATTEMPTS, st.integers(1, MAX_SEQ), max_size=5),
    st.none() | ENVELOPES,
    st.none() | ATTEMPTS,
    st.lists(EXECUTIONS, max_size=MAX_CANCELLED).map(tuple),
)
GOOD = Report(
    "dc-7k2m9qxw4rtv",
    "DC2",
    "0" * 32,
    "",
    {"agent": Component("1.2.3", "ab" * 32, "1.0.0")},
    "a",
    Attempt("exe-7k2m9qxw", 1),
    steps=(Step(Attempt("exe-7k2m9qxw", 1), 1, Phase.FAILED, "disk_full", Class.STORAGE, 4096, 1),),
)
TOLD = Answer(
    "f" * 32,
    3_600,
    {Attempt("exe-7k2m9qxw", 1): 4},
    b'{"assignment":{},"chain":"","signature":""}',
    Attempt("exe-7k2m9qxw", 1),
    ("exe-8k2m9qxw",),
)


@given(REPORTS, st.binary(min_size=1, max_size=72))
def test_a_report_comes_back_as_it_was_with_what_its_key_signs(
    report: Report, signature: bytes
) -> None:
    read = read_report(write_report(report, signature))
    assert read.report == report
    assert (read.message, read.signature) == (signed_message(report), signature)


@given(ANSWERS)
def test_an_answer_comes_back_as_it_was(answer: Answer) -> None:
    assert read_answer(write_answer(answer)) == answer


@settings(max_examples=30)
@given(REPORTS, REPORTS)
def test_two_reports_are_signed_over_the_same_bytes_only_if_they_are_equal(
    one: Report, other: Report
) -> None:
    assert (signed_message(one) == signed_message(other)) == (one == other)


def test_a_signature_holds_for_what_was_signed_and_nothing_beside_it() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signature = key.sign(signed_message(GOOD), ec.ECDSA(hashes.SHA256()))
    read = read_report(write_report(GOOD, signature))
    key.public_key().verify(read.signature, read.message, ec.ECDSA(hashes.SHA256()))
    lied = read_report(write_report(dataclasses.replace(GOOD, slot="b"), signature))
    with pytest.raises(InvalidSignature):
        key.public_key().verify(lied.signature, lied.message, ec.ECDSA(hashes.SHA256()))


@given(st.sampled_from([True, False]), st.data())
def test_one_byte_that_is_another_gives_a_refusal_or_another_message(
    of_report: bool, data: st.DataObject
) -> None:
    good = write_report(GOOD, b"signature") if of_report else write_answer(TOLD)
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda each: each != good[at]))
    cut = data.draw(st.sampled_from([good[at + 1 :], good[at:], bytes([byte]) + good[at + 1 :]]))
    mutated = good[:at] + cut if cut != good[at:] else good[:at]
    try:
        if of_report:
            read = read_report(mutated)
            kept = (read.message, read.signature) == (signed_message(GOOD), b"signature")
        else:
            kept = read_answer(mutated) == TOLD
    except ContentError:
        return
    assert not kept


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_nonsense_is_refused_and_raises_nothing_else(content: bytes) -> None:
    for read in (read_report, read_answer):
        with pytest.raises(ContentError):
            read(content)


def _replaced(value: Any, path: list[Any], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], by)
    return copy


def _paths(value: Any) -> list[list[Any]]:
    found: list[list[Any]] = [[]]
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in pairs:
        inner = _paths(each) if isinstance(each, (dict, list)) else [[]]
        found += [[key, *path] for path in inner]
    return found


@given(st.booleans(), st.data(), JSON)
def test_any_field_of_nonsense_is_refused_or_read_and_raises_nothing_else(
    of_report: bool, data: st.DataObject, nonsense: Any
) -> None:
    good = json.loads(write_report(GOOD, b"signature") if of_report else write_answer(TOLD))
    changed = _replaced(good, data.draw(st.sampled_from(_paths(good))), nonsense)
    try:
        (read_report if of_report else read_answer)(canonical(changed))
    except ContentError:
        return


def test_names_that_are_not_known_yet_are_passed_over_and_signed_over() -> None:
    said = json.loads(write_report(GOOD, b"signature"))
    said["report"]["colour"] = "red"
    read = read_report(canonical(said))
    assert read.report == GOOD
    assert b"colour" in read.message
    assert read_answer(canonical(json.loads(write_answer(TOLD)) | {"more": [1]})) == TOLD


def test_another_format_is_refused_before_anything_else() -> None:
    with pytest.raises(ContentError) as refused:
        read_report(canonical({"report": {"format": 2}, "signature": ""}))
    assert refused.value.fault is Fault.UNKNOWN_FORMAT
    with pytest.raises(ContentError) as refused:
        read_answer(canonical({"format": True}))
    assert refused.value.fault is Fault.UNKNOWN_FORMAT


def test_steps_of_one_attempt_that_do_not_rise_are_refused() -> None:
    twice = dataclasses.replace(GOOD, steps=GOOD.steps * 2)
    with pytest.raises(ContentError, match="comes after a later one"):
        read_report(write_report(twice, b"signature"))


@pytest.mark.parametrize(
    ("phase", "kind"),
    [(Phase.FAILED, None), (Phase.REJECTED, None), (Phase.CONFIRMED, Class.NETWORK)],
)
def test_a_failure_has_a_class_and_nothing_else_has(phase: Phase, kind: Class | None) -> None:
    step = dataclasses.replace(GOOD.steps[0], phase=phase, kind=kind)
    with pytest.raises(ContentError, match="class"):
        read_report(write_report(dataclasses.replace(GOOD, steps=(step,)), b"signature"))


def test_the_longest_report_there_can_be_fits_and_one_step_more_does_not() -> None:
    longest = Attempt("exe-" + "z" * 32, 1_000)
    many = tuple(
        Step(longest, MAX_SEQ - MAX_STEPS + at, Phase.FAILED, "c" * 64, Class.SELF_TEST, 1 << 40,
             1 << 48, '"' * MAX_TAIL)
        for at in range(1, MAX_STEPS + 1)
    )  # fmt: skip
    part = Component("9" * 40, "a" * 64, "9" * 40)
    parts = {f"{at}".rjust(16, "c"): part for at in range(MAX_COMPONENTS)}
    full = dataclasses.replace(
        GOOD, hardware="\u00e5" * 64, components=parts, steps=many, answers="1" * 32
    )
    assert read_report(write_report(full, b"s" * 72)).report == full
    over = Step(longest, MAX_SEQ, Phase.FAILED, "", Class.TRUST)
    with pytest.raises(ContentError):
        read_report(write_report(dataclasses.replace(full, steps=(over, *many)), b"s" * 72))


@pytest.mark.parametrize(("read", "most"), [(read_report, MAX_REPORT), (read_answer, MAX_ANSWER)])
def test_what_is_endless_is_not_read(read: Any, most: int) -> None:
    with pytest.raises(ContentError) as refused:
        read(b" " * (most + 1))
    assert refused.value.fault is Fault.TOO_LARGE
