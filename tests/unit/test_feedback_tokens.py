"""Tokens of surveys: one-time, signed, bound, typed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.label import ALPHABET
from server.errors import RefusedError
from server.feedback import tokens
from server.feedback.tokens import Binding, Channel, Delay, Token

NOW = datetime(2026, 4, 2, 12, tzinfo=UTC)
KEY, OTHER = bytes(32), bytes([1]) * 32
BOUND = Binding(
    "survey-a", "site-a", Channel.RECEIPT, "till 3", Delay.WEEK, NOW + timedelta(days=30)
)


def refused(text: str, **changed: object) -> str:
    """Return the code by which a token is refused, empty if it is not."""
    facts: dict[str, object] = {"binding": BOUND, "used": False, "closed": False, "now": NOW}
    try:
        tokens.demand(KEY, tokens.read(KEY, text), **(facts | changed))  # type: ignore[arg-type]
    except RefusedError as error:
        return error.code
    return ""


@given(st.binary(min_size=10, max_size=10), st.sampled_from(["", " ", "-"]), st.booleans())
def test_a_token_and_its_code_are_read_back_however_they_are_typed(
    random: bytes, by: str, small: bool
) -> None:
    made = tokens.make(KEY, BOUND, random)
    text = by.join(made.text[at : at + 4] for at in range(0, len(made.text), 4))
    code = by.join(made.code[at : at + 4] for at in range(0, 12, 4))
    shown = tokens.read(KEY, text.lower() if small else text)
    assert shown.kept == tokens.kept_of(made.text)
    assert tokens.read(KEY, code.lower() if small else code).kept == tokens.kept_of_code(
        KEY, made.code
    )
    assert refused(made.text) == refused(made.code) == ""
    assert made.typed.replace("-", "") == made.code


def test_a_token_is_80_random_bits_and_a_keyed_mac_of_what_it_is_bound_to() -> None:
    made = tokens.make(KEY, BOUND, bytes(range(10)))
    assert len(made.text) == 24
    assert set(made.text + made.code) <= set(ALPHABET)
    assert tokens.make(OTHER, BOUND, bytes(range(10))).text[16:] != made.text[16:]
    assert tokens.make(OTHER, BOUND, bytes(range(10))).code != made.code
    drawn = {tokens.make(KEY, BOUND, at.to_bytes(10, "big")).code for at in range(2_000)}
    assert len(drawn) == 2_000
    assert made.text not in repr(made)


@pytest.mark.parametrize(
    "moved",
    [
        {"survey": "survey-b"},
        {"site": "site-b"},
        {"channel": Channel.POSTER},
        {"touchpoint": "till 4"},
        {"delay": Delay.NOW},
        {"expires_at": BOUND.expires_at + timedelta(days=1)},
        {"survey": "survey-as", "site": "ite-a"},
    ],
)
def test_a_token_is_good_for_nothing_but_what_it_was_made_for(moved: dict[str, object]) -> None:
    made = tokens.make(KEY, BOUND, bytes(10))
    assert refused(made.text, binding=replace(BOUND, **moved)) == "unknown_code"  # type: ignore[arg-type]


def test_each_refusal_has_its_own_code() -> None:
    made = tokens.make(KEY, BOUND, bytes(10))
    assert refused("hello") == "mistyped_code"
    assert refused("") == "mistyped_code"
    assert refused(made.text, binding=None) == "unknown_code"
    assert refused(made.text[:-1] + ("2" if made.text[-1] != "2" else "3")) == "unknown_code"
    assert refused(made.text, now=BOUND.expires_at) == "expired_code"
    assert refused(made.text, closed=True) == "closed_survey"
    assert refused(made.text, used=True) == "answered_already"
    assert refused(made.code, used=True) == "answered_already"


def test_a_poster_may_be_answered_by_many() -> None:
    poster = replace(BOUND, channel=Channel.POSTER)
    made = tokens.make(KEY, poster, bytes(10))
    assert refused(made.text, binding=poster, used=True) == ""


@given(st.integers(0, 10), st.sampled_from(ALPHABET))
def test_one_wrong_character_of_a_code_is_told(at: int, wrong: str) -> None:
    made = tokens.make(KEY, BOUND, bytes(range(10)))
    typed = made.code[:at] + wrong + made.code[at + 1 :]
    assert (refused(typed) == "mistyped_code") is (typed != made.code)


def test_a_forms_sheet_is_ours_of_this_token_and_of_today() -> None:
    kept = tokens.kept_of("2" * 16)
    text = tokens.sheet(KEY, kept, now=NOW, random=bytes(10))
    later = NOW + timedelta(seconds=40)
    found = tokens.read_sheet(KEY, kept, text, now=later)
    assert found.begun == NOW
    for wrong, token, now in (
        (text[:-1] + ("0" if text[-1] != "0" else "1"), kept, later),
        (text, tokens.kept_of("3" * 16), later),
        (text, kept, NOW + tokens.SHEET_LIFE * 2),
        (text, kept, NOW - timedelta(seconds=1)),
        ("", kept, later),
    ):
        with pytest.raises(RefusedError) as info:
            tokens.read_sheet(KEY, token, wrong, now=now)
        assert info.value.code == "stale_form"


def test_no_secret_of_a_token_shows_in_its_repr() -> None:
    shown = tokens.read(KEY, tokens.make(KEY, BOUND, bytes(10)).text)
    assert "2222" not in repr(shown)
    assert "2222" not in repr(Token("2" * 16, "2" * 24, "2" * 12))
