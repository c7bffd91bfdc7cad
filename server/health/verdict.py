"""How a condition says what it found, and what it is told of how it stood before. Pure."""

from datetime import UTC, datetime
from typing import NamedTuple

from server.health.judgement import Condition, Evidence, Judgement, Standing, Subject


class Before(NamedTuple):
    """How a condition stood when it was last known: whether it fired, since when, and from where
    on it touched counts."""

    firing: bool = False
    since_s: int | None = None
    from_s: int | None = None


NEVER = Before()
"""Not judged before."""


class Case(NamedTuple):
    """Whom a condition is judged of, how it stood, and the time of judging."""

    subject: Subject
    now_s: int
    before: Before = NEVER


def at(instant_s: float) -> datetime:
    """Return an instant of whole or broken seconds."""
    return datetime.fromtimestamp(instant_s, UTC)


def firing(
    case: Case,
    condition: Condition,
    evidence: Evidence,
    *,
    since_s: float,
    from_s: float | None = None,
) -> Judgement:
    """It is so. A condition that fired goes on since it began; what it touches only grows."""
    before = case.before
    if before.firing and before.since_s is not None:
        since_s = min(before.since_s, since_s)
        if from_s is not None and before.from_s is not None:
            from_s = min(before.from_s, from_s)
    affected = None if from_s is None else at(from_s)
    return Judgement(case.subject, condition, Standing.FIRING, at(since_s), evidence, affected)


def clear(case: Case, condition: Condition, evidence: Evidence, *, since_s: float) -> Judgement:
    """It is not so; `since_s` is from when on the counts are right again, if it was."""
    before = case.before
    if not before.firing and before.since_s is not None:
        since_s = min(before.since_s, since_s)
    return Judgement(case.subject, condition, Standing.CLEAR, at(since_s), evidence)


def unknown(
    case: Case, condition: Condition, why: str, evidence: Evidence | None = None
) -> Judgement:
    """Nobody can tell, and why: which neither opens nor ends anything."""
    told: Evidence = {"why": why, **(evidence or {})}
    return Judgement(case.subject, condition, Standing.UNKNOWN, at(case.now_s), told)


def held(case: Case, condition: Condition, evidence: Evidence) -> Judgement:
    """Between both thresholds: it stands as it stood; if that was never known, it is unknown."""
    before = case.before
    if before.since_s is None:
        return unknown(case, condition, "between the thresholds", evidence)
    if before.firing:
        return firing(case, condition, evidence, since_s=before.since_s, from_s=before.from_s)
    return clear(case, condition, evidence, since_s=before.since_s)
