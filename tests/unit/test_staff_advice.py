"""What the staff of a shop is told about a device."""

from hypothesis import given
from hypothesis import strategies as st

from server.config import Secret
from server.health.judgement import Condition
from server.health.presence import State
from server.people.sealing import Seal
from server.staff.advice import Verdict, advise
from server.staff.pages import HERE
from server.web import catalogue
from server.web import spot_codes as passes

SEAL = Seal(Secret("s" * 32))
STATES = st.none() | st.sampled_from(State)
CONDITIONS = st.sets(st.sampled_from(Condition))


def test_a_device_that_is_gone_is_looked_after_at_its_power_first() -> None:
    assert advise(State.OFFLINE, [Condition.OFFLINE]).steps[:2] == ("power", "cable")
    found = advise(State.OFFLINE, [Condition.OFFLINE, Condition.SITE_OFFLINE])
    assert found.steps[:2] == ("site_power", "router")


def test_what_staff_cannot_help_with_reads_as_working() -> None:
    for condition in (Condition.CERTIFICATE, Condition.LEVEL_SHIFT, Condition.CLOCK_DRIFT):
        assert advise(State.HEALTHY, [condition]).verdict is Verdict.WORKING


@given(STATES, CONDITIONS, st.booleans(), st.booleans(), st.booleans())
def test_every_advice_can_be_said_in_every_language(
    state: State | None, conditions: set[Condition], admitted: bool, known: bool, seen_to: bool
) -> None:
    found = advise(state, conditions, admitted=admitted, known=known, seen_to=seen_to)
    assert bool(found.steps) == (found.verdict not in (Verdict.WORKING, Verdict.EMPTY))
    for words in CATALOGUES.values():
        for key in (found.verdict, f"{found.verdict}_how", *(f"step_{s}" for s in found.steps)):
            assert words(f"st_{key}")
    if state is not None and not known:
        assert found.verdict is Verdict.UNTOLD


CATALOGUES = catalogue.load([catalogue.SHARED, HERE / "catalogues"])


def test_the_catalogues_are_complete() -> None:
    assert catalogue.problems(CATALOGUES) == []


@given(st.from_regex(r"spot-[a-z2-9]{8}", fullmatch=True), st.text(max_size=60))
def test_a_code_opens_the_page_of_its_spot_and_no_other(spot: str, other: str) -> None:
    made = passes.token(SEAL, spot)
    assert passes.spot_of(SEAL, made) == spot
    assert passes.spot_of(Seal(Secret("t" * 32)), made) is None
    assert passes.spot_of(SEAL, made[:-1] + ("a" if made[-1] != "a" else "b")) is None
    assert passes.spot_of(SEAL, "spot-other234" + made[len(spot) :]) is None
    assert passes.spot_of(SEAL, other) is None
