"""A kiosk's button that presses itself. Pure.

The misuse filter's rules (`server.feedback.misuse`): thirty presses of one button as regular as no
hand (coefficient of variation below 0.1), or more than 20 of one in each of three minutes. Before
there are thirty, the last `EARLY` of one button do, if they come like clockwork over `EARLY_MS`: a
child's hand is regular for seconds, not for a minute. So a button that repeats within 14 s is known
in three minutes. It clears after `QUIET_S` of observed time in which it did not go on.
"""

from collections.abc import Sequence
from itertools import pairwise

from server.feedback.misuse import STUCK_GAP_MS, Press, Reason, like_clockwork, verdicts
from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, clear, firing, held, unknown

EARLY = 12
EARLY_MS = 60_000
QUIET_S = 900
CONDITION = Condition.STUCK_BUTTON


def judge(case: Case, presses: Sequence[Press], *, observed_to_s: int | None) -> Judgement:
    """Judge a kiosk by its presses of the last hour, in order; stored up to `observed_to_s`."""
    stuck = _stuck(presses)
    if not stuck:
        if observed_to_s is None or observed_to_s < case.now_s - QUIET_S:
            return unknown(case, CONDITION, "nothing has come for a quarter of an hour")
        evidence: dict[str, float | str] = {"presses": len(presses)}
        return clear(case, CONDITION, evidence, since_s=case.before.since_s or case.now_s)
    first, last = presses[stuck[0]], presses[stuck[-1]]
    span_s = (last.at_ms - first.at_ms) / 1000
    evidence = {
        "presses": len(stuck),
        "button": last.answer,
        "every_s": round(span_s / max(1, len(stuck) - 1), 1),
    }
    if observed_to_s is not None and last.at_ms / 1000 < observed_to_s - QUIET_S:
        if case.before.firing:
            return clear(case, CONDITION, evidence, since_s=last.at_ms // 1000 + 1)
        return held(case, CONDITION, evidence)
    since = first.at_ms // 1000
    return firing(case, CONDITION, evidence, since_s=since, from_s=since)


def _stuck(presses: Sequence[Press]) -> list[int]:
    """Return the numbers of the presses that no hand made."""
    found = verdicts(presses, closed=lambda _: False)
    stuck = [n for n, reason in enumerate(found) if reason is Reason.STUCK]
    return stuck or _early(presses)


def _early(presses: Sequence[Press]) -> list[int]:
    """Return the last presses of one button, if they come like clockwork already.

    Visitors go on pressing the other buttons meanwhile.
    """
    buttons: dict[tuple[int, int, int], list[int]] = {}
    for number, each in enumerate(presses):
        buttons.setdefault((each.questionnaire, each.question, each.answer), []).append(number)
    for numbers in buttons.values():
        run = numbers[-EARLY:]
        times = [presses[number].at_ms for number in run]
        close = all(after - before <= STUCK_GAP_MS for before, after in pairwise(times))
        if len(run) < EARLY or not close or times[-1] - times[0] < EARLY_MS:
            continue
        if like_clockwork(times):
            return run
    return []
