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
from ops.evaluations.leeds import LEEDS
from ops.evaluations.promise import Size
from server.health.judgement import Condition


def main(argv: list[str]) -> int:
    """Evaluate, print, and return 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="ops.eval_health", description=__doc__)
    parser.add_argument("--only", choices=sorted(Condition), help="the faults of one condition")
    parser.add_argument("--part", choices=health.PARTS, default="all", help="one half of it")
    parser.add_argument("--short", action="store_true", help="the cut that the tests run")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (1)")
    parser.add_argument(
        "--counts", type=Path, default=LEEDS, help="published hourly counts, where they are"
    )
    options = parser.parse_args(argv)
    only = None if options.only is None else Condition(options.only)
    counts = options.counts if options.counts.exists() else None
    if counts is None:
        print(f"no published counts at {options.counts.name}: simulated fleets alone")
    began = time.monotonic()
    lines = []
    size = Size(full=not options.short, seed=options.seed)
    for each in health.everything(size, only=only, part=options.part, leeds=counts):
        print(each.line(), flush=True)
        lines.append(each)
    missed = health.broken(lines)
    print(f"\n{len(lines) - len(missed)} of {len(lines)} promises kept, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    for each in missed:
        print(f"broken: {each.line()}")
    return 1 if missed or not lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
