"""`make eval-insight`: what the models promise, measured; exit code 1 if a promise is broken.

Each line is one promise, the value that was measured, the bounds it is held to, and by how much it
missed them. An evaluation is a function in `ops.evaluations`; it is entered in `EVALUATIONS`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping

from ops.evaluations.experiments import experiments
from ops.evaluations.imputation import imputation
from ops.evaluations.occupancy import occupancy
from ops.evaluations.promise import Promise, Size

Evaluation = Callable[[Size], list[Promise]]
EVALUATIONS: Mapping[str, Evaluation] = {
    "experiments": experiments,
    "imputation": imputation,
    "occupancy": occupancy,
}


def evaluate(evaluations: Mapping[str, Evaluation], size: Size) -> list[Promise]:
    """Run evaluations, printing each line as it is known."""
    found: list[Promise] = []
    for name, evaluation in evaluations.items():
        began = time.monotonic()
        print(f"\n== {name}", flush=True)
        for promise in evaluation(size):
            print(promise.line(), flush=True)
            found.append(promise)
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
    return found


def main(
    argv: list[str],
    *,
    evaluations: Mapping[str, Evaluation] = EVALUATIONS,
    prog: str = "ops.eval_insight",
    about: str | None = __doc__,
) -> int:
    """Evaluate, print, and return 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--only", choices=sorted(evaluations), help="one evaluation alone")
    parser.add_argument("--short", action="store_true", help="the cut that the tests run")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (1)")
    options = parser.parse_args(argv)
    chosen = {options.only: evaluations[options.only]} if options.only else evaluations
    found = evaluate(chosen, Size(full=not options.short, seed=options.seed))
    broken = [promise for promise in found if not promise.kept]
    print()
    for promise in broken:
        print(f"broken: {promise.name}, {promise.value:.2%}, missed by {promise.missed_by:.2%}")
    print(f"{len(found) - len(broken)} of {len(found)} promises kept")
    return 1 if broken or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
