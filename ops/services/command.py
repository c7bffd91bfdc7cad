"""`vestibule services up | down | status`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ops.services.errors import ServicesError
from ops.services.stack import Stack

__all__ = ["main", "run"]


def main(argv: list[str]) -> int:
    """Run the command; return its exit code: 0 done, 1 not running or failed, 2 misused."""
    try:
        return run(argv)
    except ServicesError as error:
        print(error, file=sys.stderr)
        return 1


def run(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    stack = Stack(arguments.root)
    if arguments.action == "up":
        stack.up(lambda text: print(f"  {text}", file=sys.stderr))
    elif arguments.action == "down":
        stack.down()
        return 0
    return _show(stack)


def _show(stack: Stack) -> int:
    states = stack.status()
    if not states:
        print("no services here yet; `vestibule services up` makes them")
    for state in states:
        ports = ", ".join(str(port) for port in state.ports)
        who = f"as process {state.pid}" if state.pid else "elsewhere"
        what = f"runs {who}" if state.running else "does not run"
        print(f"{state.name:9} port {ports:13} {what}, log {state.log_path}")
    return 0 if states and all(state.running for state in states) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vestibule services",
        description="The private PostgreSQL with TimescaleDB and the private MQTT broker.",
    )
    parser.add_argument(
        "action",
        choices=("up", "down", "status"),
        help="start both (made at the first time), stop both (data stays), or say how they are",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("VESTIBULE_HOME", ".vestibule")),
        help="where data, certificates and logs live (default: VESTIBULE_HOME or .vestibule)",
    )
    return parser
