"""`make eval-insight` in short: the promises are kept, and a broken model is found out."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ops import eval_insight
from ops.evaluations import experiments
from ops.evaluations import imputation as evaluation
from ops.evaluations.leeds import LEEDS
from server.insight import drift, imputation, trial
from server.insight.trial import Effect


@pytest.fixture(autouse=True)
def _seeded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Leeds' counts, so that the verdict is the same wherever the tests run."""
    for name in ("imputation", "experiments"):
        monkeypatch.setattr(f"ops.evaluations.{name}.LEEDS", LEEDS / "nowhere")


def verdict(capsys: pytest.CaptureFixture[str], only: str) -> tuple[int, list[str]]:
    """Return the exit code of a short evaluation, and the lines that say what is broken."""
    code = eval_insight.main(["--short", "--only", only])
    out = capsys.readouterr().out
    return code, [line for line in out.splitlines() if line.startswith("broken: ")]


@pytest.mark.parametrize("only", ["experiments", "imputation", "occupancy"])
def test_every_promise_is_kept(only: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(capsys, only) == (0, [])


def test_halved_intervals_are_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = imputation.bounds

    def halved(mean: float, variance: float, share: float) -> tuple[float, float]:
        low, high = real(mean, variance, share)
        return mean - (mean - low) / 2, mean + (high - mean) / 2

    monkeypatch.setattr(imputation, "bounds", halved)
    code, broken = verdict(capsys, "imputation")
    assert code == 1
    assert any("truth in the 95% interval" in line and "missed by" in line for line in broken)


def test_shuffled_shares_are_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = imputation.SiteModel.mean

    def of_the_next(model: imputation.SiteModel, number: int, at: int) -> float | None:
        return real(model, (number + 1) % len(model.counters), at)

    monkeypatch.setattr(imputation.SiteModel, "mean", of_the_next)
    code, broken = verdict(capsys, "imputation")
    assert code == 1
    assert any("one door out, hours: truth in the" in line for line in broken)


def test_a_season_that_is_not_followed_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imputation, "levels", lambda cells, counter, expected: {})
    code, broken = verdict(capsys, "imputation")
    assert code == 1
    assert any("all doors out, hours: bias" in line for line in broken)


def test_a_rate_of_drift_that_is_never_learnt_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drift, "rate", lambda accounts, at_s: drift.Rate(0.0, 0.001, 800.0))
    code, broken = verdict(capsys, "occupancy")
    assert code == 1
    assert any("error of that of in - out" in line for line in broken)
    assert any("truth in the 95 % band" in line for line in broken)


def test_a_test_that_takes_chance_for_an_effect_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that asks for p below 0.2, and calls it 0.05."""
    real = trial.effect_of

    def lenient(differences: Sequence[float], *, rng: random.Random) -> Effect:
        found = real(differences, rng=rng, alpha=0.2)
        return replace(found, p=found.p / 4)

    monkeypatch.setattr(experiments, "effect_of", lenient)
    code, broken = verdict(capsys, "experiments")
    assert code == 1
    assert len(broken) == 4


def test_an_evaluation_that_measures_nothing_keeps_no_promise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "outages", lambda place, rng, *, whole: [set(), set(), set()])
    monkeypatch.setattr(
        evaluation,
        "simulated",
        lambda seed, number, days: evaluation.Place("none", (), ()),
    )
    monkeypatch.setattr(evaluation, "score", lambda place, into, rng, *, whole: None)
    code, broken = verdict(capsys, "imputation")
    assert code == 1
    assert len(broken) == 6
