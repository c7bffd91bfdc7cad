"""What the technician's pages say: complete in every language, and for every step and refusal."""

import re
from datetime import timedelta

import pytest

from server.provisioning.progress import HINTS, Mark, Step, StepStatus
from server.tech.pages import HERE
from server.tech.refusals import OWN, TABLE
from server.tech.steps import USUAL, shown
from server.web import catalogue

LOADED = catalogue.load([catalogue.SHARED, HERE / "catalogues"])


def test_every_language_says_everything_with_the_same_names_in_it() -> None:
    assert catalogue.problems(LOADED) == []


def test_what_templates_and_scripts_say_is_in_the_catalogue_and_nothing_else() -> None:
    known = LOADED["en"].texts
    own = catalogue.load([HERE / "catalogues"])["en"].texts
    used = set()
    for path in HERE.glob("templates/*.html"):
        used |= set(re.findall(r"""\bt\('([\w.-]+)'""", path.read_text()))
    for path in HERE.glob("*.py"):
        used |= set(re.findall(r"""\bwords\("([\w.-]+)\"""", path.read_text()))
    used = {key for key in used if not key.endswith((".", "_"))}  # of a family
    scripts = "".join(path.read_text() for path in HERE.glob("static/*.js"))
    assert used <= known.keys()
    families = ("kind.", "purpose.", "mark.", "step.", "hint.", "verdict.", "seen_")
    for key in own.keys() - used:
        if key.startswith("js."):
            assert f'"{key.removeprefix("js.")}"' in scripts, key
        else:
            assert key.startswith(families) or key in ("in", "out"), key


def test_scripts_say_nothing_that_is_not_in_the_catalogue() -> None:
    for path in HERE.glob("static/*.js"):
        for key in re.findall(r"""\bsay\("(\w+)\"""", path.read_text()):
            assert f"js.{key}" in LOADED["en"].texts, (path.name, key)


@pytest.mark.parametrize("language", catalogue.LANGUAGES)
@pytest.mark.parametrize("kind", ["counter", "kiosk"])
def test_each_step_has_a_name_a_time_and_what_to_look_at(language: str, kind: str) -> None:
    words = LOADED[language]
    for step in Step:
        waiting = [StepStatus(step, Mark.WAITING, HINTS[step])]
        [early] = shown(waiting, waited=timedelta(seconds=-1), kind=kind, words=words)
        [late] = shown(
            waiting, waited=USUAL[step] * 1.1 + timedelta(seconds=1), kind=kind, words=words
        )
        assert early.name
        assert not early.late
        assert late.late
        assert len(late.hint) > 10
        assert late.hint != early.hint


def test_only_the_first_step_that_waits_says_what_for() -> None:
    steps = [
        StepStatus(Step.CLAIMED, Mark.DONE),
        StepStatus(Step.ASKED, Mark.WAITING, HINTS[Step.ASKED]),
        StepStatus(Step.CERTIFIED, Mark.WAITING, HINTS[Step.CERTIFIED]),
    ]
    found = shown(steps, waited=timedelta(hours=1), kind="counter", words=LOADED["en"])
    assert [one.late for one in found] == [False, True, False]
    assert [bool(one.hint) for one in found] == [False, True, False]


def test_the_phones_own_refusals_are_whole_and_new() -> None:
    for code, row in OWN.items():
        assert TABLE[code] is row
        assert len({row.sv, row.da, row.en}) == 3
        for sentence in (row.sv, row.da, row.en):
            assert sentence.endswith(".")
            assert len(sentence) < 120
