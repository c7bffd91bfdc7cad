"""`make soak`: what takes longer than a test may, one after the other, with a table at the end.

Each part is a command of its own and ends in a closing line, which the table quotes. `--only NAME`
runs the parts whose name begins so; exit code 0 only if every part that ran has passed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.deployment import HOME
from ops.evaluations.leeds import LEEDS
from ops.services.child import python, vestibule
from ops.services.stack import Stack

_GRACE_S = 900  # for set-up, draining and proof, beyond a part's own time


@dataclass(frozen=True, slots=True)
class Part:
    """One command; `needs` is a file without which it is skipped.

    One that is `tried` shows where the limit lies: that it failed is a result, not a failure.
    """

    name: str
    command: Sequence[str]
    seconds: float
    needs: Path | None = None
    tried: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a part ended; `passed` is None where it was skipped."""

    name: str
    passed: bool | None
    took_s: float
    closing: str
    tried: bool = False

    def line(self) -> str:
        """Return the table's line."""
        failed = "tried" if self.tried else "FAILED"
        verdict = {True: "passed", False: failed, None: "skipped"}[self.passed]
        return f"{self.name:<14} {verdict:<8} {self.took_s:7.0f} s  {self.closing}"


def parts(work: Path) -> list[Part]:
    """Return all parts, in order."""
    chaos = python("-m", "ops.chaos", "--seconds", "120", "--seed")
    simulate = vestibule("simulate", "--devices")
    years = ("--from", "2011-01-01", "--to", "2014-01-01", "--report", str(work / "replay.csv"))
    contract = python(
        "-m", "pytest", "-q", "-k", "whatever", "tests/integration/test_api_contract.py"
    )
    replay = vestibule("replay", str(LEEDS), "--timezone", "Europe/London", *years)
    truth = python(
        "-m", "pytest", "-q", "-o", "timeout=1500", "tests/integration/test_insight_truth.py"
    )
    return [
        Part("fuzz", python("-m", "ext.fuzz", "600"), 600),
        Part("long-tests", python("-m", "pytest", "-q", "-m", "long", "-n", "2"), 1200),
        Part("contract", ["env", "VESTIBULE_CONTRACT_CASES=200", *contract, "--timeout=1500"], 900),
        *(Part(f"chaos-{seed}", [*chaos, f"{seed}"], 120) for seed in (1, 2, 3)),
        Part("simulate-1000", [*simulate, "1000", "--duration", "600"], 600),
        Part("simulate-2000", [*simulate, "2000", "--duration", "120"], 120, tried=True),
        Part("year", python("-m", "ops.year", "--devices", "2000"), 600),
        Part("replay", replay, 1800, LEEDS),
        Part("eval-insight", python("-m", "ops.eval_insight"), 300),
        Part("eval-firmware", python("-m", "ops.eval_firmware"), 900),
        Part("eval-health", python("-m", "ops.eval_health"), 480),
        Part("truth-100", ["env", "VESTIBULE_TRUTH_SITES=100", *truth], 600),
        Part("revoke-1000", python("-m", "tests.bench.revoke", "--devices", "1000"), 300),
    ]


def run(part: Part, *, env: Mapping[str, str]) -> Result:
    """Run one part, passing on what it says; a part that hangs is ended by its own id."""
    if part.needs is not None and not part.needs.exists():
        return Result(part.name, None, 0.0, f"{part.needs.name} is not here")
    print(f"\n== {part.name}: {' '.join(part.command)}", flush=True)
    began = time.monotonic()
    closing = ""
    with subprocess.Popen(
        part.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        env={**os.environ, **env},
    ) as process:
        assert process.stdout is not None
        patience = threading.Timer(part.seconds + _GRACE_S, process.kill)
        patience.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line.strip() or closing
        patience.cancel()
        code = process.wait()
    return Result(part.name, code == 0, time.monotonic() - began, closing, part.tried)


def main(argv: list[str]) -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(prog="ops.soak", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="parts whose name begins so")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="vestibule-soak-") as work:
        Path(work).chmod(0o755)  # the services may run as another account
        wanted = [part for part in parts(Path(work)) if part.name.startswith(options.only)]
        if not wanted:
            names = ", ".join(part.name for part in parts(Path(work)))
            parser.error(f"no part begins with {options.only!r}; there are {names}")
        home = Path(work) / "home"
        try:
            results = [run(part, env={HOME: str(home)}) for part in wanted]
        finally:
            Stack(home).remove()  # what simulate and replay have brought up
    print("\n" + "\n".join(result.line() for result in results))
    return 0 if all(result.passed is not False or result.tried for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
