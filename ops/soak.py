"""`make soak`: what takes longer than a test may, one after the other, with a table at the end.

Each part is a command of its own and ends in a closing line, which the table quotes. `--only NAME`
runs the parts whose name begins so; exit code 0 only if every part that ran has passed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.chaos.child import python, vestibule

LEEDS = Path(__file__).parents[2] / "shared/data/leeds_footfall_2009_2014.csv.gz"
_GRACE_S = 900  # for set-up, draining and proof, beyond a part's own time


@dataclass(frozen=True, slots=True)
class Part:
    """One command; `needs` is a file without which it is skipped."""

    name: str
    command: Sequence[str]
    seconds: float
    needs: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a part ended; `passed` is None where it was skipped."""

    name: str
    passed: bool | None
    took_s: float
    closing: str

    def line(self) -> str:
        """Return the table's line."""
        verdict = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        return f"{self.name:<14} {verdict:<8} {self.took_s:7.0f} s  {self.closing}"


def parts(work: Path) -> list[Part]:
    """Return all parts, in order."""
    chaos = python("-m", "ops.chaos", "--seconds", "120", "--seed")
    return [
        Part("fuzz", python("-m", "ext.fuzz", "600"), 600),
        *(Part(f"chaos-{seed}", [*chaos, f"{seed}"], 120) for seed in (1, 2, 3)),
        Part("simulate-1000", vestibule("simulate", "--devices", "1000", "--seconds", "600"), 600),
        Part("simulate-2000", vestibule("simulate", "--devices", "2000", "--seconds", "120"), 120),
        Part(
            "replay",
            vestibule("replay", str(LEEDS), "--timezone", "Europe/London",
                      "--report", str(work / "replay.csv")),
            1800,
            LEEDS,
        ),
    ]  # fmt: skip


def run(part: Part) -> Result:
    """Run one part, passing on what it says; a part that hangs is ended by its own id."""
    if part.needs is not None and not part.needs.exists():
        return Result(part.name, None, 0.0, f"{part.needs.name} is not here")
    print(f"\n== {part.name}: {' '.join(part.command)}", flush=True)
    began = time.monotonic()
    closing = ""
    with subprocess.Popen(
        part.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        deadline = began + part.seconds + _GRACE_S
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line.strip() or closing
            if time.monotonic() > deadline:
                process.kill()
                closing = f"not done after {part.seconds + _GRACE_S:.0f} s"
        code = process.wait()
    return Result(part.name, code == 0, time.monotonic() - began, closing)


def main(argv: list[str]) -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(prog="ops.soak", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="parts whose name begins so")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="vestibule-soak-") as work:
        wanted = [part for part in parts(Path(work)) if part.name.startswith(options.only)]
        if not wanted:
            names = ", ".join(part.name for part in parts(Path(work)))
            parser.error(f"no part begins with {options.only!r}; there are {names}")
        results = [run(part) for part in wanted]
    print("\n" + "\n".join(result.line() for result in results))
    return 0 if all(result.passed is not False for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
