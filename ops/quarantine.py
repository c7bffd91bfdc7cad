"""`vestibule quarantine list|explain|redrive`: frames that could not be read.

A re-drive fills exactly the gap that its frame left, once, as a revision of what it changes.
"""

import argparse
import asyncio
import json

import asyncpg

from ops.deployment import deployment
from server.clock import SystemClock
from server.ingest.quarantine import Entry, explain, get, listed, reason_name, redrive


def main(argv: list[str]) -> int:
    """Run the subcommand on the deployment's database."""
    options = _parser().parse_args(argv)
    asyncio.run(_run(options, deployment(database_alone=True).owner_dsn.reveal()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vestibule quarantine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="newest first")
    listing.add_argument("--device", help="only this device's")
    listing.add_argument("--all", action="store_true", help="also those driven in since")
    listing.add_argument("--limit", type=int, default=50, help="how many at most (default 50)")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    explaining = commands.add_parser("explain", help="say why, and show the bytes by section")
    explaining.add_argument("id", type=int, help="as `list` shows it")
    driving = commands.add_parser("redrive", help="read again, and fill the gap")
    driving.add_argument("id", type=int, nargs="+", help="as `list` shows them")
    return parser


async def _run(options: argparse.Namespace, dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        if options.command == "list":
            found = await listed(
                connection, device=options.device, redriven=options.all, limit=options.limit
            )
            for entry in found:
                print(_as_json(entry) if options.json else _line(entry))
        elif options.command == "explain":
            print(explain(await get(connection, options.id)))
        else:
            for number in options.id:
                done = await redrive(connection, number, now_ms=SystemClock().now_ms())
                print(f"{number}: {'filled its gap' if done else 'done before'}")
    finally:
        await connection.close()


def _as_json(entry: Entry) -> str:
    return json.dumps(
        {
            "id": entry.id,
            "received_at": _received(entry),
            "device": entry.device,
            "seq": entry.seq,
            "reason": reason_name(entry.reason),
            "detail": entry.detail,
            "redriven": entry.redriven,
        }
    )


def _line(entry: Entry) -> str:
    seq = "-" if entry.seq is None else entry.seq
    return (
        f"{entry.id:>8}  {_received(entry)}  {entry.device:<24} seq {seq:<8} "
        f"{reason_name(entry.reason)}: {entry.detail}"
    )


def _received(entry: Entry) -> str:
    return entry.received_at.isoformat(timespec="seconds")
