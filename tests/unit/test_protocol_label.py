"""Labels: what a QR code holds and a person types, and what a mistake does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.label import (
    ALPHABET,
    SECRET_LENGTH,
    LabelError,
    bind_proof,
    check,
    digest,
    label,
    parse,
    serial_number,
    typed,
)

secrets = st.text(ALPHABET, min_size=SECRET_LENGTH, max_size=SECRET_LENGTH)
serials = st.from_regex(r"\A[A-Z0-9][A-Z0-9-]{2,30}\Z")


@given(serials, secrets)
def test_what_is_printed_can_be_read_in_any_case_and_typed_in_groups(
    serial: str, secret: str
) -> None:
    found = label(serial, secret)
    assert parse(found.text) == parse(found.text.upper()) == parse(found.text.lower()) == found
    assert typed(serial.lower(), f" {found.typed.lower()} ") == found
    assert found.text == f"vsl1.{serial}.{secret}{check(serial, secret)}"


def test_a_label_is_always_the_same_text() -> None:
    found = label("DC-0001", "23456789ABCDEFGH")
    assert found.text == "vsl1.DC-0001.23456789ABCDEFGH5"
    assert found.typed == "2345-6789-ABCD-EFGH-5"
    assert len(label("A" * 12, "2" * 16).text) <= 38  # a version 2 QR of medium correction


@given(serials, secrets, st.integers(0, SECRET_LENGTH), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_told(serial: str, secret: str, at: int, wrong: str) -> None:
    whole = secret + check(serial, secret)
    if whole[at] != wrong:
        with pytest.raises(LabelError):
            typed(serial, whole[:at] + wrong + whole[at + 1 :])


@given(serials, secrets, st.integers(0, SECRET_LENGTH - 1))
def test_two_neighbours_that_were_swapped_are_told(serial: str, secret: str, at: int) -> None:
    whole = secret + check(serial, secret)
    if whole[at] != whole[at + 1]:
        with pytest.raises(LabelError):
            typed(serial, whole[:at] + whole[at + 1] + whole[at] + whole[at + 2 :])


def test_a_mistyped_serial_is_nearly_always_told() -> None:
    secret = "23456789ABCDEFGH"
    right = "DC-2024-001734"
    missed = [
        wrong
        for at in range(len(right))
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        if (wrong := right[:at] + letter + right[at + 1 :]) != right
        and check(wrong, secret) == check(right, secret)
    ]
    assert len(missed) < 0.05 * 36 * len(right)


@pytest.mark.parametrize("text", ["", "vst1.abc", "vsl1.", "vsl1.DC-1", "vsl1.DC-1.", "vsl1.é.22"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(LabelError):
        parse(text)


@pytest.mark.parametrize("serial", ["", "ab", "-abc", "a b c", "a" * 32, "a.b.c", "Ω123"])
def test_what_is_no_serial_is_refused(serial: str) -> None:
    with pytest.raises(LabelError):
        serial_number(serial)


def test_neither_the_secret_nor_a_message_shows_it() -> None:
    secret = "23456789ABCDEFGH"
    assert secret not in repr(label("DC-1", secret))
    with pytest.raises(LabelError) as error:
        typed("DC-1", secret + check("DC-2", secret))
    assert secret not in str(error.value)


def test_a_proof_is_bound_to_all_it_says() -> None:
    key = digest("23456789ABCDEFGH")
    said = {"voucher": "v", "serial": "DC-1", "spot": "s"}
    proof = bind_proof(key, **said, at_ms=1)
    assert len(proof) == 64
    others = [
        bind_proof(digest("x"), **said, at_ms=1),
        bind_proof(key, **said, at_ms=2),
        *(bind_proof(key, **{**said, name: "other"}, at_ms=1) for name in said),
    ]
    assert proof not in others
