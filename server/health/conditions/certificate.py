"""A certificate that ends before its device is expected to be heard again. Pure.

A device renews by itself, from half of its certificate's life on. What matters is therefore not how
many days are left, but how many chances: of a device that is heard every day five days are plenty,
of one in a pop-up shop that is closed for the season they are none. When it will be heard next is
the last contact and its usual pause (the longest of the last weeks); where the shop is closed now,
not before it opens. It fires where that, and `MARGIN_S`, lies after the end, or where less than
`LAST` of its life is left. It clears with a certificate of which `CLEARS` of its life is left.
"""

from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, clear, firing, held, unknown

MARGIN_S = 86_400
LAST = 0.05
CLEARS = 0.1
CONDITION = Condition.CERTIFICATE


class Certificate(NamedTuple):
    """From when to when it holds."""

    begins_s: float
    ends_s: float


def judge(
    case: Case,
    certificate: Certificate | None,
    *,
    heard_s: float | None,
    pause_s: float,
    opens_s: float | None = None,
) -> Judgement:
    """Judge a device; `pause_s`: its usual longest silence, `opens_s`: when its shop opens next."""
    if certificate is None or heard_s is None:
        return unknown(case, CONDITION, "it has no certificate, or was never heard")
    following = max(heard_s + pause_s, case.now_s if opens_s is None else opens_s)
    left = certificate.ends_s - case.now_s
    life = max(1.0, certificate.ends_s - certificate.begins_s)
    evidence: dict[str, float | str] = {
        "days_left": round(left / 86_400, 1),
        "next_contact_h": round((following - case.now_s) / 3_600, 1),
        "share_left": round(left / life, 3),
    }
    if following + MARGIN_S > certificate.ends_s or left < LAST * life:
        return firing(case, CONDITION, evidence, since_s=case.now_s)
    if left > CLEARS * life:
        return clear(case, CONDITION, evidence, since_s=certificate.begins_s)
    return held(case, CONDITION, evidence)
