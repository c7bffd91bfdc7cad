"""What is masked in visitors' own words, and what is not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.feedback.masking import MOST_TEXT, mask

GONE = [
    ("skriv till anna.berg@example.se tack", "skriv till [e-mail] tack"),
    ("anna.berg (at) example.se", "[e-mail]"),
    ("Anna@Example.COM.", "[e-mail]."),
    ("se https://example.com/x?y=1 nu", "se [link] nu"),
    ("www.example.dk/om", "[link]"),
    ("mer på example.se", "mer på [link]"),
    ("SE45 5000 0000 0583 9825 7466", "[account]"),
    ("DK5000400440116243", "[account]"),
    ("DE89370400440532013000", "[account]"),
    ("kort 4111 1111 1111 1111", "kort [card]"),
    ("5500-0000-0000-0004", "[card]"),
    ("811218-9876", "[personal number]"),
    ("19811218-9876", "[personal number]"),
    ("198112189876", "[personal number]"),
    ("811218-9877", "[personal number]"),  # the check digit does not fit
    ("811278-9876", "[personal number]"),  # samordningsnummer
    ("120101+1234", "[personal number]"),
    ("CPR 010203-1234", "CPR [personal number]"),
    ("3112991234", "[personal number]"),
    ("ring 070-123 45 67", "ring [phone]"),
    ("+46 70 123 45 67", "[phone]"),
    ("+46 (0)70 123 45 67", "[phone]"),
    ("0046701234567", "[phone]"),
    ("08-123 456 78", "[phone]"),
    ("(08) 123 456 78", "[phone]"),
    ("+45 12 34 56 78", "[phone]"),
    ("ring 12345678", "ring [phone]"),
    ("tlf. 12 34 56 78", "tlf. [phone]"),
    ("22 34 56 78", "[phone]"),
    ("+47 912 34 567", "[phone]"),
    ("912 34 567", "[phone]"),
    ("+358 40 1234567", "[phone]"),
    ("call me on 5551234567", "call me on [phone]"),
    ("Jag heter Anna Berg och kom igår", "Jag heter [name] och kom igår"),
    ("jag heter anna", "jag heter [name]"),
    ("Mitt namn är Åsa von Öst.", "Mitt namn är [name]."),
    ("Jeg hedder Søren Ærø", "Jeg hedder [name]"),
    ("mit navn er Jens, hej", "mit navn er [name], hej"),
    ("my name is Mary-Ann O'Neil and I shop", "my name is [name] and I shop"),
    ("Tack! Mvh Kalle", "Tack! Mvh [name]"),
]
STAYS = [
    "Kön var lång kl. 17.30-18.00 den 12 mars 2026",
    "Priset 1 299,00 kr stämde inte, det stod 999:-",
    "Jag väntade i 25 minuter vid kassa 3",
    "Artikel 4711 saknades i storlek 42",
    "Det kostade 12 345 kr",
    "Öppet 10-19, men dörren var stängd 18.45",
    "Artikelnummer 70012345 var slut",
    "4111 1111 1111 1112 stod på hyllan",  # no card: Luhn does not fit
    "Jag heter inte kund, jag är gäst",
    "2026-03-12 var ni stängda",
    "Kvitto 20260312 kl 10:15",
    "3 av 5 prøverum var låste",
    "The staff is kind.Really kind",
    "50 % rabatt på 2 par, 1 500 kr",
    "Personalen, t.ex. i kassan, var bra",
    "Jeg ventede 10-15 min. Ellers fint!",
    "My name badge was wrong",
]


@pytest.mark.parametrize(("said", "kept"), GONE)
def test_what_tells_who_somebody_is_is_masked(said: str, kept: str) -> None:
    assert mask(said) == kept


@pytest.mark.parametrize("said", STAYS)
def test_what_is_about_the_visit_stays_as_it_was_said(said: str) -> None:
    assert mask(said) == said


@given(st.text(max_size=1_500))
def test_masking_keeps_the_limit_and_leaves_no_address(said: str) -> None:
    once = mask(said)
    assert len(once) <= MOST_TEXT
    assert "\0" not in once
    assert not re.search(r"[\w.]+@\w+\.\w+", once)


@given(
    before=st.sampled_from(["", "nås på ", "x: "]),
    number=st.from_regex(r"07[02369][0-9]{7}", fullmatch=True),
    cut=st.sampled_from([(), (3,), (3, 6, 8), (4, 7)]),
    by=st.sampled_from([" ", "-"]),
)
def test_swedish_mobile_numbers_go_however_they_are_grouped(
    before: str, number: str, cut: tuple[int, ...], by: str
) -> None:
    parts, at = [], 0
    for end in (*cut, len(number)):
        parts.append(number[at:end])
        at = end
    written = parts[0] + (by + " ".join(parts[1:]) if len(parts) > 1 else "")
    masked = mask(before + written)
    assert masked in (f"{before}[phone]", f"{before}[personal number]")


@pytest.mark.parametrize("letter", ["\u0130", "\u0131", "\u017f", "\u212a"])
def test_letters_that_only_look_like_ascii_are_no_account(letter: str) -> None:
    assert mask(f"GB82 {letter}EST 1234 5698") == f"GB82 {letter}EST 1234 5698"
