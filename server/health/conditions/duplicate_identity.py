"""Two that speak with one device's identity. Pure.

Ingest notes what one device cannot do: two boots that live at once, another frame under a number
that is taken. One such finding fires, since it has no harmless kind; it clears when `CLEARS_S` have
passed without one and the device was heard after them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, clear, firing, held, unknown

CLEARS_S = 86_400
CONDITION = Condition.DUPLICATE_IDENTITY


class Finding(NamedTuple):
    """What was seen, and when."""

    at_s: float
    what: str


def judge(case: Case, findings: Sequence[Finding], *, heard_s: float | None) -> Judgement:
    """Judge a device by what was found of it lately, in order."""
    last = findings[-1] if findings else None
    evidence: dict[str, float | str] = {"findings": len(findings)}
    if last is not None:
        evidence["last"] = last.what
        if case.now_s - last.at_s < CLEARS_S:
            first = next(each.at_s for each in findings if case.now_s - each.at_s < CLEARS_S)
            return firing(case, CONDITION, evidence, since_s=first)
    if heard_s is None:
        return unknown(case, CONDITION, "it was never heard", evidence)
    if case.before.firing and (last is None or heard_s < last.at_s + CLEARS_S):
        return held(case, CONDITION, evidence)
    return clear(case, CONDITION, evidence, since_s=heard_s if last is None else last.at_s)
