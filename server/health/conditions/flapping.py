"""A connection that comes and goes. Pure.

It fires at `FIRES` losses within an hour: a radio at the edge of its reach, a loose plug, a router
that ends sessions. A device that was moved or a router restarted loses it once or twice. It clears
after `CLEARS_S` with one loss at most and the device heard at its end: a device that is gone has
not stopped flapping.
"""

from bisect import bisect_left
from collections.abc import Sequence

from server.health.conditions.reboot_loop import densest
from server.health.judgement import Condition, Judgement
from server.health.series import HOUR_S
from server.health.verdict import Case, clear, firing, held, unknown

FIRES = 6
CLEARS_S = 2 * HOUR_S
CONDITION = Condition.FLAPPING


def judge(case: Case, losses_s: Sequence[float], *, heard_s: float | None) -> Judgement:
    """Judge a device by when its connection was lost, in order, over the last hours."""
    within = len(losses_s) - bisect_left(losses_s, case.now_s - HOUR_S)
    evidence: dict[str, float | str] = {"losses_an_hour": within, "limit": FIRES}
    if within >= FIRES:
        return firing(case, CONDITION, evidence, since_s=densest(losses_s, HOUR_S)[1])
    if heard_s is None or heard_s < case.now_s - HOUR_S:
        return unknown(case, CONDITION, "it is not heard now", evidence)
    late = len(losses_s) - bisect_left(losses_s, case.now_s - CLEARS_S)
    if case.before.firing and late > 1:
        return held(case, CONDITION, evidence)
    return clear(case, CONDITION, evidence, since_s=losses_s[-1] if losses_s else heard_s)
