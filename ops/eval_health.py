"""`make eval-health`: what is found of faults that are put in, how soon, and what cries wolf.

Each line is one promise with what was measured: of faults, the share that was found, the median
and the 95th percentile of the time it took; of devices in which nothing is wrong, the false alarms
per device and year. Exit code 1 if a promise is broken. The table stands in `ops/HEALTH.md`.
"""

import argparse
import sys
import time
from pathlib import Path

from ops.evaluations import health
from ops.evaluations.findings import HEADER
from ops.evaluations.leeds import LEEDS
from ops.evaluations.promise import Size
from ops.evaluations.street_health import NOT_HERE
from server.health.judgement import Condition


def main(argv: list[str]) -> int:
    """Evaluate, print, and return 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="ops.eval_health", description=__doc__)
    parser.add_argument("--only", choices=sorted(Condition), help="the faults of one condition")
    parser.add_argument(
        "--part", choices=health.PARTS, default="all", help="one half of it, or more months"
    )
    parser.add_argument("--short", action="store_true", help="the cut that the tests run")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (1)")
    parser.add_argument(
        "--counts", type=Path, default=LEEDS, help="published hourly counts, where they are"
    )
    options = parser.parse_args(argv)
    only = None if options.only is None else Condition(options.only)
    counts = options.counts if options.counts.exists() else None
    if counts is None:
        print(f"streets: skipped, as {options.counts.name} is not here; simulated fleets alone")
    else:
        print(_not_here())
    print(HEADER)
    began = time.process_time()
    lines = []
    size = Size(full=not options.short, seed=options.seed)
    for each in health.everything(size, only=only, part=options.part, leeds=counts):
        print(each.line(), flush=True)
        lines.append(each)
    promised, missed = [each for each in lines if each.promised], health.broken(lines)
    print(f"\n{len(promised) - len(missed)} of {len(promised)} promises kept, "
          f"{time.process_time() - began:.0f} s of a processor")  # fmt: skip
    for each in missed:
        print(f"broken: {each.line()}")
    return 1 if missed or not promised else 0


def _not_here() -> str:
    """Return what cannot be put into streets, by why."""
    reasons: dict[str, list[str]] = {}
    for condition, why in NOT_HERE.items():
        reasons.setdefault(why, []).append(condition)
    said = "; ".join(f"{', '.join(each)} ({why})" for why, each in reasons.items())
    return f"not put into streets: {said}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
