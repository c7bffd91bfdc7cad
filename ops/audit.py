"""`vestibule audit`: who did what, and whether the record of it still holds.

`verify` checks every chain, row by row, and prints each chain's head. `--note FILE` keeps the heads
elsewhere, and `--head FILE` holds the chains against heads noted earlier: without them nobody can
tell a chain whose end was cut off from a shorter one. Exit code 1 names the rows that do not hold.
"""

import argparse
import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from ops.deployment import database, deployment
from ops.people import organisation_of
from ops.words import parser_of
from server.audit.log import Heads, heads, verify
from server.errors import RefusedError

EXIT_BROKEN = 1


def main(argv: list[str]) -> int:
    """Run the subcommand on the deployment's database."""
    return asyncio.run(_run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("audit", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    checking = verbs.add_parser("verify", help="check every chain; 1 if one does not hold")
    checking.add_argument("--head", type=Path, help="heads noted earlier")
    checking.add_argument("--note", type=Path, help="write the heads here, if all holds")
    showing = verbs.add_parser("show", help="list acts, the oldest first")
    showing.add_argument("--since", type=datetime.fromisoformat, help="ISO time (default: all)")
    showing.add_argument("--organisation", help="its name or ref")
    showing.add_argument("--act", help="such as 'role granted'")
    showing.add_argument("--limit", type=int, default=1000, help="the newest so many")
    return parser


async def _run(options: argparse.Namespace) -> int:
    async with database(deployment(database_alone=True).owner_dsn.reveal()) as connection:
        if options.verb == "verify":
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await _verify(connection, options)
        await _show(connection, options)
        return 0


async def _verify(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    noted = read_heads(options.head) if options.head else {}
    count, broken = await verify(connection, heads=noted)
    for each in broken:
        print(f"chain {each.chain}, row {each.number}: {each.why}", file=sys.stderr)
    found = await heads(connection)
    for chain, (number, digest) in found.items():
        print(f"chain {chain}\trow {number}\t{digest.hex()}")
    print(f"{count} rows in {len(found)} chains: {'BROKEN' if broken else 'all hold'}")
    if broken:
        return EXIT_BROKEN
    if options.note:
        write_heads(options.note, found)
    return 0


def write_heads(path: Path, found: Heads) -> None:
    """Keep heads in a file."""
    rows = {str(chain): [number, digest.hex()] for chain, (number, digest) in found.items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"noted": datetime.now(UTC).isoformat(), "heads": rows}) + "\n")
    partial.replace(path)


def read_heads(path: Path) -> Heads:
    """Return the heads that were kept. RefusedError if the file is none of ours."""
    try:
        rows = json.loads(path.read_text())["heads"]
        return {
            int(chain): (int(number), bytes.fromhex(text)) for chain, (number, text) in rows.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError("bad_heads", f"{path}: not what --note writes: {error}") from error


async def _show(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = None
    if options.organisation:
        organisation = await organisation_of(connection, options.organisation)
    since = options.since
    if since is not None and since.tzinfo is None:
        since = since.astimezone()
    rows = await connection.fetch(
        "select * from (select a.id, a.at, a.chain, a.number, coalesce(o.name, ''), a.actor, "
        "a.act, a.subject, a.detail from audit a left join organisations o on o.id = a.chain "
        "where ($1::timestamptz is null or a.at >= $1) and ($2::int is null or a.chain = $2) "
        "and ($3::text is null or a.act = $3) order by a.id desc limit $4) newest order by id",
        since,
        organisation,
        options.act,
        options.limit,
    )
    for _, at, chain, number, *rest in (tuple(row.values()) for row in rows):
        print("\t".join((at.isoformat(timespec="seconds"), f"{chain}/{number}", *rest)))
