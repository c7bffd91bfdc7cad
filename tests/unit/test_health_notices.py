"""What mail about incidents says, and what it never becomes."""

from datetime import UTC, datetime
from email import message_from_bytes, policy

import pytest

from server.fleet.checks import FieldError
from server.health.contacts import Contact, checked
from server.health.incidents import Tell
from server.health.judgement import Condition, Severity
from server.health.notices import Facts, Told, body_of, message_of, subject_of

NOW = datetime(2026, 4, 2, 12, tzinfo=UTC)
TOLD = Told(1, 1, "incident-k7m2x9ab", Tell.OPENED, 1, Severity.CRITICAL)
FACTS = Facts(
    Condition.SITE_OFFLINE, "Shop", "Shop", NOW, None, 12,
    tuple(f"dc-{number}" for number in range(10)), 1, 210.4, "",
)  # fmt: skip


def test_a_message_names_the_root_the_cost_the_cause_and_what_to_try() -> None:
    assert subject_of(TOLD, FACTS) == "[critical] site offline: Shop"
    body = body_of(TOLD, FACTS)
    for line in (
        "What: Shop\n",
        "Since: 2026-04-02 12:00 UTC",
        "Devices: 12",
        "At stake today: about 210 visits that are not counted",
        "Probably: The site lost its power",
        "Try first: Call the shop",
        "- dc-9\n- and 2 more",
        "incident-k7m2x9ab, message 1",
    ):
        assert line in body


@pytest.mark.parametrize("name", ["A\r\nBcc: x@example.com", "A\nB", "=?utf-8?q?A?=", "Ä 店"])
def test_a_shops_name_makes_no_header_of_a_message(name: str) -> None:
    facts = Facts(Condition.OFFLINE, name, name, NOW, None, 1, (), 1, 0.0, "")
    message = message_of(
        dedupe="incident-1.1.contact-1",
        subject=subject_of(TOLD, facts),
        body=body_of(TOLD, facts),
        sender="fleet@example.com",
        to="noc@example.com",
        pages="https://vestibule.example",
        now=NOW,
    )
    read = message_from_bytes(bytes(message), policy=policy.default)
    assert read["To"] == "noc@example.com"
    assert read["Bcc"] is None
    assert read["Message-ID"] == "<incident-1.1.contact-1@vestibule.example>"
    assert "\n" not in read["Subject"]


@pytest.mark.parametrize(
    "email",
    ["a@b.c\r\nBcc: d@e.f", "a@b.c, d@e.f", "A <a@b.c>", "a b@c.d", "a", "@b.c", "ä@b.c", ""],
)
def test_a_contact_has_one_plain_address(email: str) -> None:
    with pytest.raises(FieldError):
        checked(Contact("A", email, Severity.INFO))
