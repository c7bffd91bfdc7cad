"""`vestibule key`: an organisation's API keys. Each is shown once; every act is audited.

To change a key without a pause: `vestibule key rotate PREFIX --overlap 7d` prints its successor,
and the old one goes on for so long.
"""

import argparse
import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta

import asyncpg

from ops.deployment import Action, carry_out
from ops.people import organisation_of
from ops.words import Verbs, parser_of
from server.api.keys import SCOPES, create_api_key, revoke_api_key, rotate_api_key
from server.errors import NotFoundError

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def main(argv: list[str]) -> int:
    """Run the subcommand in one transaction."""
    asyncio.run(carry_out(_parser().parse_args(argv)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("key", __doc__)
    verbs = Verbs[Action](parser, "add|list|rotate|revoke")
    add = verbs.add("add", "make a key", _add)
    add.add_argument("organisation", help="its name or ref")
    add.add_argument("--note", default="", help="what it is for")
    add.add_argument("--scope", action="append", choices=sorted(SCOPES), help="(default: read)")
    add.add_argument("--expires", type=span, metavar="SPAN", help="after so long: 90d, 12h")
    verbs.add("list", "list keys, without their secrets", _list)
    rotating = verbs.add("rotate", "make a key's successor, and let it end", _rotate)
    rotating.add_argument("prefix", help="the 8 characters after vk_")
    rotating.add_argument(
        "--overlap", type=span, default=timedelta(days=7), metavar="SPAN", help="(default: 7d)"
    )
    revoking = verbs.add("revoke", "end a key at once", _revoke)
    revoking.add_argument("prefix", help="the 8 characters after vk_")
    return parser


def span(text: str) -> timedelta:
    """Read `7d`, `12h` or `30m`."""
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a span such as 7d, 12h or 30m, got {text!r}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


async def _add(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    now = datetime.now(UTC)
    key = await create_api_key(
        connection,
        await organisation_of(connection, options.organisation),
        options.note,
        scopes=options.scope or ("read",),
        expires_at=now + options.expires if options.expires else None,
        now=now,
    )
    _print(key)


async def _list(connection: asyncpg.Connection, _: argparse.Namespace) -> None:
    rows = await connection.fetch(
        "select k.prefix, o.name, array_to_string(k.scopes, ','), k.note, k.created_at, "
        "k.last_used_at, k.expires_at, k.revoked_at, r.prefix as successor from api_keys k "
        "join organisations o on o.id = k.organisation_id "
        "left join api_keys r on r.id = k.replaced_by order by k.id"
    )
    now = datetime.now(UTC)
    for row in rows:
        prefix, organisation, scopes, note, created, used, expires, revoked, successor = row
        words = [f"created {created:%Y-%m-%d}"]
        words.append(f"used {used:%Y-%m-%d %H:%M}" if used else "never used")
        if revoked:
            words.append(f"revoked {revoked:%Y-%m-%d}")
        elif expires:
            words.append(f"{'ended' if expires <= now else 'ends'} {expires:%Y-%m-%d %H:%M}")
        if successor:
            words.append(f"succeeded by vk_{successor}")
        print("\t".join((f"vk_{prefix}", organisation, scopes, note, ", ".join(words))))


async def _rotate(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    _print(
        await rotate_api_key(
            connection, _prefix(options), overlap=options.overlap, now=datetime.now(UTC)
        )
    )


async def _revoke(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    if not await revoke_api_key(connection, _prefix(options)):
        raise NotFoundError(f"no valid key vk_{_prefix(options)}")


def _prefix(options: argparse.Namespace) -> str:
    text: str = options.prefix
    return text.removeprefix("vk_")[:8]


def _print(key: str) -> None:
    print(key)
    print("shown once; keep it where secrets are kept", file=sys.stderr)
