"""`vestibule contact`: who is told by mail of what is wrong, of an organisation or of the platform.

Incidents of the platform (the broker, the database or this server's own link is away) are told to
contacts that are added with --platform, and to nobody else. Mail needs VESTIBULE_SMTP_URL.
"""

import argparse
import asyncio
from datetime import UTC, datetime

import asyncpg

from ops.deployment import Action, carry_out
from ops.people import organisation_of
from ops.words import Verbs, parser_of
from server.health import contacts, notices
from server.health.contacts import Contact
from server.health.judgement import Severity

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def main(argv: list[str]) -> int:
    """Run the subcommand in one transaction."""
    asyncio.run(carry_out(_parser().parse_args(argv)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("contact", __doc__)
    verbs = Verbs[Action](parser, "add|list|remove|resend")
    add = verbs.add("add", "add somebody who is told", _add)
    _whose(add)
    add.add_argument("email", help="where mail goes")
    add.add_argument("--name", help="who that is (default: the address)")
    add.add_argument(
        "--severity",
        choices=[each.value for each in Severity],
        default=Severity.MAJOR.value,
        help="the least that they hear of (default: major)",
    )
    add.add_argument("--hours", metavar="07:00-18:00", default="", help="when (default: always)")
    add.add_argument("--timezone", default="UTC", help="of the hours (default: UTC)")
    add.add_argument(
        "--day", action="append", choices=_DAYS, help="a weekday; may be repeated (default: all)"
    )
    add.add_argument("--digest", action="store_true", help="mail what is open each day at seven")
    listing = verbs.add("list", "list contacts", _list)
    _whose(listing)
    removing = verbs.add("remove", "tell somebody no longer", _remove)
    _whose(removing)
    removing.add_argument("contact", help="as `vestibule contact list` names it")
    again = verbs.add("resend", "try again what was given up", _resend)
    _whose(again)
    again.add_argument("contact", help="as `vestibule contact list` names it")
    return parser


def _whose(parser: argparse.ArgumentParser) -> None:
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--organisation", help="its name or ref")
    whose.add_argument("--platform", action="store_true", help="of whoever runs the platform")


async def _owner(connection: asyncpg.Connection, options: argparse.Namespace) -> int | None:
    return None if options.platform else await organisation_of(connection, options.organisation)


async def _add(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    since, _, until = options.hours.partition("-")
    wanted = Contact(
        options.name or options.email.partition("@")[0],
        options.email,
        Severity(options.severity),
        options.timezone,
        tuple(map(_DAYS.index, options.day or _DAYS)),
        since,
        until,
        options.digest,
    )
    made = await contacts.add(
        connection,
        await _owner(connection, options),
        wanted,
        actor="command",
        now=datetime.now(UTC),
    )
    print(made.ref)


async def _list(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    for known in await contacts.listed(connection, await _owner(connection, options)):
        contact = known.contact
        hours = (
            f"{contact.since}-{contact.until} {contact.time_zone}" if contact.since else "always"
        )
        days = ",".join(_DAYS[day] for day in contact.weekdays)
        digest = "digest" if contact.digest else ""
        print("\t".join((known.ref, contact.email, contact.severity, hours, days, digest)))


async def _remove(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    owner = await _owner(connection, options)
    await contacts.remove(
        connection, owner, options.contact, actor="command", now=datetime.now(UTC)
    )


async def _resend(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    owner = await _owner(connection, options)
    many = await notices.resend(
        connection, owner, options.contact, actor="command", now=datetime.now(UTC)
    )
    print(f"{many} to be sent again")
