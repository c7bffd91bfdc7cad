"""A digest's message: nothing that a name says becomes a field of it."""

from datetime import UTC, date, datetime
from email import message_from_bytes, policy

from hypothesis import example, given
from hypothesis import strategies as st

from server.portal.digest_mail import message_of
from server.portal.digest_numbers import Digest, Week
from server.portal.frame import CATALOGUES
from server.web import catalogue

WORDS = catalogue.load([catalogue.SHARED, *CATALOGUES])
PIECES = [
    *("=?utf-8?q?", "=?utf-8?b?", "=?nope?q?", "?=", "=0d=0aBcc:_x@y.se", "DQpCY2M6IHhAeS5zZQ=="),
    *("\r\nBcc: x@y.se", "*en*", "\u2028", "\x85", "_", " ", "a", "é"),
]


def digest(name: str) -> Digest:
    week = Week("", name, *([None] * 9))
    return Digest(name, date(2026, 3, 23), week, (), (), (), (), ())


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
@example("=?nope?q?=0d=0aBcc:_x@y.se?=")
def test_no_organisations_name_becomes_a_field_of_the_message(name: str) -> None:
    made = message_of(
        digest(name), WORDS["en"], number=1, sender="Vestibule <v@x.se>", to="ada@x.se",
        pages="https://x.se", token="t", now=datetime(2026, 3, 30, tzinfo=UTC),
    )  # fmt: skip
    read = message_from_bytes(made.as_bytes(policy=policy.SMTP), policy=policy.default)
    assert read.keys() == made.keys()
    assert read["To"] == "ada@x.se"
    assert "Bcc" not in read
