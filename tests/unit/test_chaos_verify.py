"""The verifier stands alone, and its sums in time are right; its proofs are tested in system/."""

import subprocess
import sys

from ops.chaos.differences import Difference, Wrong
from ops.chaos.record import Crossing
from ops.chaos.verify import Verdict, _in_time


def test_the_verifier_imports_nothing_of_the_product() -> None:
    """Neither do the truth and what it writes."""
    script = (
        "import sys, ops.chaos.verify, ops.chaos.truth; "
        "print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"server", "agent", "ext", "protocol", "simulators"}
    ours = {name for name in loaded if name.startswith("ops.")}
    assert ours <= {
        "ops.chaos",
        "ops.chaos.checks",
        "ops.chaos.differences",
        "ops.chaos.record",
        "ops.chaos.served",
        "ops.chaos.truth",
        "ops.chaos.verify",
    }


def crossing(at_s: float, people: int, *, id: int = 1) -> Crossing:
    ms = round(at_s * 1000)
    return Crossing("dc-a", id, 0, people, 0, ms, ms + 500)


def late(cells: list[dict[str, int]], events: list[Crossing]) -> list[Difference]:
    return _in_time(
        "dc-a line 0 in",
        events,
        [e.entered for e in events],
        cells=cells,
        kept=[cell["entered"] for cell in cells],
    )


def cell(at_s: int, entered: int, *, interval_s: int = 5) -> dict[str, int]:
    return {"at_ms": at_s * 1000, "interval_s": interval_s, "entered": entered}


def test_people_in_their_minute_are_right() -> None:
    assert late([cell(30, 2), cell(90, 1)], [crossing(31, 2), crossing(94, 1, id=2)]) == []


def test_people_a_minute_early_are_found() -> None:
    (found,) = late([cell(30, 2), cell(40, 1)], [crossing(31, 2), crossing(94, 1, id=2)])
    assert (found.wrong, found.amount) == (Wrong.ALTERED, 1)
    assert "up to 1970-01-01 00:01" in found.place


def test_people_a_minute_late_are_found() -> None:
    (found,) = late([cell(90, 2), cell(95, 1)], [crossing(31, 2), crossing(94, 1, id=2)])
    assert found.amount == 2


def test_nothing_proved_is_not_a_proof() -> None:
    assert not Verdict(people=0, presses=0, frames=0, unplaced=0, differences=()).proved


def test_the_closing_line_says_all_three() -> None:
    wrong = Difference(Wrong.LOST, 3, "dc-a line 0 in", "5", "2")
    verdict = Verdict(people=5, presses=1, frames=2, unplaced=0, differences=(wrong,))
    assert verdict.closing().endswith("lost 3 duplicated 0 altered 0")
    assert "lost 3: dc-a line 0 in: expected 5, found 2" in verdict.report()
