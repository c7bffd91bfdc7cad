"""`vestibule bench`: measure each figure beside its limit or peer, in the same run.

Every module of `tests/bench` has `run() -> list[Row]`. The rows go to `tests/bench/results.json`
and to a table; nothing here passes or fails, machines are noisy, and ratios are what counts.
"""

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from server.log import configure

SUITES = (
    *("decode", "agent", "storage", "writer", "ingest", "api", "metrics", "pki", "enrol"),
    *("hold", "survey", "search", "console", "presence", "rollout"),
)
RESULTS = Path("tests/bench/results.json")


class Row(TypedDict):
    """One measured figure; ours end in `.ours`. `ratio` is value over limit."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    ratio: float | None


def main(argv: list[str]) -> int:
    """Run the suites and write the results of those that ran over their earlier ones."""
    parser = argparse.ArgumentParser(prog="vestibule bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}")
    options = parser.parse_args(argv)
    wanted = options.suites or SUITES
    if unknown := set(wanted) - set(SUITES):
        parser.error(f"no suite {', '.join(sorted(unknown))}")
    if not RESULTS.parent.is_dir():
        print("vestibule bench runs in a checkout: tests/bench is not here", file=sys.stderr)
        return 1
    sys.path.insert(0, str(Path.cwd()))
    kept = [row for row in _earlier() if _suite_of(row["name"]) not in wanted]
    measured: list[Row] = []
    for suite in wanted:
        print(f"measuring {suite} ...", file=sys.stderr, flush=True)
        # whatever the suite before left; ten thousand devices that vanish are thousands of lines
        configure(level=logging.WARNING)
        rows: list[Row] = importlib.import_module(f"tests.bench.{suite}").run()
        measured += rows
        RESULTS.write_text(json.dumps(kept + measured, indent=1) + "\n")
    Console().print(table(measured))
    return 0


def _suite_of(name: str) -> str:
    """Return which suite measures a figure."""
    return "metrics" if name.startswith("api.metrics.") else name.partition(".")[0]


def table(rows: list[Row]) -> Table:
    """Return the rows as a table a person reads."""
    shown = Table(title="measured, beside its limit or peer in the same run")
    for column in ("name", "value", "unit", "limit", "what limits", "ratio"):
        shown.add_column(column, justify="left" if column in ("name", "what limits") else "right")
    for row in rows:
        shown.add_row(
            row["name"],
            _number(row["value"]),
            row["unit"],
            "" if row["limit"] is None else _number(row["limit"]),
            row["limit_name"],
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            style="bold" if row["name"].endswith(".ours") else None,
        )
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"


def _earlier() -> list[Row]:
    if not RESULTS.exists():
        return []
    rows: list[Row] = json.loads(RESULTS.read_text())
    return rows
