"""A device whose disk is nearly full: its outbox will have to thin out what it counted. Pure.

Fires with less than `FIRES` bytes free: two weeks of an outbox and room to update. Clears above
twice that. The device's own word that its disk refuses (`outbox.trouble`) fires at once.
"""

from collections.abc import Sequence

from server.health.conditions.gauge import Value, judged
from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, firing

FIRES = 200e6
CLEARS = 2 * FIRES
CONDITION = Condition.STORAGE


def judge(case: Case, free: Sequence[Value], trouble: Sequence[Value] = ()) -> Judgement:
    """Judge a device by its free bytes, and by whether its outbox has trouble (0 or 1)."""
    evidence: dict[str, float | str] = {"limit_bytes": FIRES}
    if free:
        evidence["free_bytes"] = free[-1].value
    if trouble and trouble[-1].value > 0:
        return firing(case, CONDITION, evidence | {"refuses": 1.0}, since_s=trouble[-1].at_s)
    return judged(
        case,
        CONDITION,
        free,
        bad=lambda value: value < FIRES,
        good=lambda value: value > CLEARS,
        evidence=evidence,
    )
