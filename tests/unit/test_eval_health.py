"""`make eval-health` in short: the promises are kept, and a bad detector is found out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from ops import eval_health
from ops.evaluations import health
from ops.evaluations.health import Line, Quiet
from ops.evaluations.promise import Size
from ops.evaluations.truth_conditions import Found
from server.feedback.misuse import Press
from server.health.conditions import stuck_button, temperature
from server.health.conditions.gauge import Value
from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, clear, firing
from tests.leeds import stand_in

SHORT = Size(full=False)


def test_every_promise_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = eval_health.main(["--short", "--counts", str(tmp_path / "nowhere")])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "16 of 16 promises kept" in out


def test_a_detector_that_never_fires_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(case: Case, presses: Sequence[Press], *, observed_to_s: int | None) -> Judgement:
        return clear(case, Condition.STUCK_BUTTON, {}, since_s=case.now_s)

    monkeypatch.setattr(stuck_button, "judge", never)
    (line,) = health.found(SHORT, only=Condition.STUCK_BUTTON)
    assert not line.kept
    assert line.found.share == 0
    assert "MISSED" in line.line()


def test_a_detector_that_always_fires_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(case: Case, celsius: Sequence[Value]) -> Judgement:
        return firing(case, Condition.TEMPERATURE, {}, since_s=case.now_s)

    monkeypatch.setattr(temperature, "judge", always)
    devices = next(health.quiet(SHORT))
    assert not devices.kept
    assert devices.alarms[Condition.TEMPERATURE] == 1  # once, and for ever


def test_published_counts_are_looked_at_as_the_doors_of_a_place_that_never_closes(
    tmp_path: Path,
) -> None:
    counts = stand_in(tmp_path / "counts.csv")
    place = health.of_streets(counts.path, days=1, warm_days=28)
    assert len(place.doors) == 3
    assert all(place.is_open)
    assert place.quarters == 29 * 96 + 4  # the clock goes back within
    first = place.doors[0]
    assert sum(first.entered) + sum(first.left) > 0
    assert set(first.observed_s) <= {0, 900}


def test_nothing_measured_keeps_no_promise() -> None:
    assert not Line(Condition.FLATLINE, "none", Found(), 1.0).kept
    assert not Line(Condition.FLATLINE, "late", Found([10.0]), 9.0).kept
    assert not Line(Condition.FLATLINE, "few", Found([1.0, None]), 9.0).kept
    assert not Quiet("nobody", Counter(), 0.0).kept
    assert not Quiet("many", Counter({Condition.FLATLINE: 2}), 3.0).kept
    assert Quiet("few", Counter({Condition.FLATLINE: 1}), 3.0).kept
