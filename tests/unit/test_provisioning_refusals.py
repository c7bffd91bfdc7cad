"""The table of refusals: complete, in three languages, and where all refusals come from."""

import ast
from pathlib import Path

import pytest

from server.provisioning.progress import HINTS, Step
from server.provisioning.refusals import TABLE, Then, language, refused

FOLDER = Path("server/provisioning")
UPDATES = [Path("server/firmware/fetching.py"), Path("server/firmware/offers.py")]
ANNOUNCED = {
    *("unknown_serial", "bad_secret", "not_allowed_yet", "allowance_expired", "pending"),
    *("claim_expired", "claim_used", "unknown_claim", "voucher_expired", "voucher_withdrawn"),
    *("voucher_spent", "voucher_bad", "other_organisation", "wrong_kind", "reenrol_required"),
    *("device_not_admitted", "too_many", "bad_request_for_certificate", "key_in_use"),
}
ELSEWHERE = {"bad_csv"}  # an operator's file; no device hears of it


def raised() -> set[str]:
    """Return every code that devices' routes refuse with, and those of `register.assign`."""
    found = {"other_organisation", "wrong_kind"}
    for path in [*FOLDER.glob("*.py"), *UPDATES]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                wanted = node.func.id in ("refused", "refusal", "RefusedError")
                texts = (
                    [a.value for a in node.args if isinstance(a, ast.Constant)] if wanted else []
                )
                found |= {str(text) for text in texts if " " not in str(text)}
    return found


def test_every_refusal_has_its_row() -> None:
    assert raised() - ELSEWHERE <= set(TABLE)
    assert set(TABLE) >= ANNOUNCED


def test_no_row_is_for_nothing() -> None:
    others = {"unavailable", "renewal_too_early"}  # UnavailableError and TooEarlyError say it
    assert set(TABLE) <= raised() | others | set(HINTS.values())


def test_only_the_table_says_why_a_device_is_refused() -> None:
    by_hand = {path.name for path in FOLDER.glob("*.py") if "RefusedError(" in path.read_text()}
    assert by_hand == {"refusals.py", "manifest.py"}  # the latter refuses an operator's file


@pytest.mark.parametrize("code", TABLE)
def test_a_row_says_it_in_three_languages_and_what_comes_next(code: str) -> None:
    row = TABLE[code]
    sentences = [row.sentence("sv"), row.sentence("da"), row.sentence("en")]
    assert len(set(sentences)) == 3
    assert all(s[0].isupper() and s.endswith(".") and 20 < len(s) <= 100 for s in sentences)
    waits = {"pending", "too_many", "unavailable", "certificate_withdrawn", "renewal_too_early"}
    waits |= {"report_not_own", "site_busy"}
    assert (row.then is Then.WAIT) == (code in waits)
    assert 400 <= row.status < 600 or code == "pending"
    assert str(refused(code)) == row.en


def test_the_page_shows_the_table_as_it_is() -> None:
    rows = [
        f"| `{code}` | {row.status} | {row.then.value} | {row.en} |" for code, row in TABLE.items()
    ]
    shown = (FOLDER / "README.md").read_text().splitlines()
    assert [line for line in shown if line.startswith("| `") and line.count("|") == 5] == rows


def test_every_step_has_its_hint() -> None:
    assert set(HINTS) == set(Step)


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [("sv-SE,sv;q=0.9", "sv"), ("nb,da;q=0.5", "da"), ("fr", "en"), ("", "en"), ("en-GB", "en")],
)
def test_the_language_is_the_first_of_ours(accepted: str, wanted: str) -> None:
    assert language(accepted) == wanted
