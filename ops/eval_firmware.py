"""`make eval-firmware`: what the counts guard of rollouts halts, how soon, and what it halts for.

Seeded chains of stores in which a new version loses people, or nobody, and real streets; each line
is one promise with what was measured. Exit code 1 if one is broken. The table stands in
`ops/FIRMWARE.md`.
"""

import sys

from ops import eval_insight
from ops.evaluations.firmware import firmware

EVALUATIONS = {"counts": firmware}


def main(argv: list[str]) -> int:
    """Evaluate, print, and return 1 if a promise is broken."""
    return eval_insight.main(
        argv, evaluations=EVALUATIONS, prog="ops.eval_firmware", about=__doc__
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
