"""`vestibule user`: who may sign in, and what they may.

Nobody is given a password: `user add` and `user reset` print a link that works once, by which its
holder chooses one. Roles: administrator, noc, technician, analyst, store-manager; each holds
everywhere, or in an organisation, or in one of its regions or sites.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import asyncpg

from ops.deployment import Deployment, acting, deployment
from ops.words import Verbs, parser_of
from server.errors import NotFoundError, RefusedError
from server.people import links, users
from server.people.links import Purpose
from server.people.roles import Grant, Role
from server.web.catalogue import LANGUAGES

ACTOR = "command"
Action = Callable[[asyncpg.Connection, argparse.Namespace, Deployment], Awaitable[int]]


def main(argv: list[str]) -> int:
    """Run the subcommand in one transaction."""
    return asyncio.run(_run(_parser().parse_args(argv)))


async def _run(options: argparse.Namespace) -> int:
    found = deployment(database_alone=True)
    act: Action = options.action
    async with acting(found.owner_dsn.reveal()) as connection:
        return await act(connection, options, found)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("user", __doc__)
    verbs = Verbs[Action](parser, "add|list|grant|revoke|reset|...")

    add = verbs.add("add", "add a user with a role; prints the invitation", _add)
    _who(add)
    _scope(add)
    add.add_argument("--name", default="", help="what to call them")
    add.add_argument(
        "--language", choices=sorted(LANGUAGES), default="en", help="of their pages (default en)"
    )
    verbs.add("list", "list users and what they may", _list)
    _who(verbs.add("disable", "shut a user out at once: every session ends", _disable))
    _who(verbs.add("enable", "let a disabled user in again", _enable))
    reset = verbs.add("reset", "print a link by which a user chooses another password", _reset)
    _who(reset)
    reset.add_argument("--codes", action="store_true", help="lost phone: ask for codes no more")
    for name, summary, action in (
        ("grant", "give a role", _grant),
        ("revoke", "take a role away", _revoke),
    ):
        changing = verbs.add(name, summary, action)
        _who(changing)
        _scope(changing)
    return parser


def _who(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("email", help="their e-mail, or ref such as user-7k2m9qxw")


def _scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--role",
        required=True,
        choices=[role.value.replace(" ", "-") for role in Role],
        help="what they may do, there or everywhere",
    )
    parser.add_argument("--organisation", help="its name or ref (default: everywhere)")
    parser.add_argument("--region", help="its ref")
    parser.add_argument("--site", help="its ref, such as site-7k2m9qxw")


async def _add(
    connection: asyncpg.Connection, options: argparse.Namespace, found: Deployment
) -> int:
    now, given = datetime.now(UTC), await _grant_of(connection, options)
    row = await users.add(
        connection,
        email=options.email,
        name=options.name,
        language=options.language,
        actor=ACTOR,
        organisation=given.organisation,
        now=now,
    )
    await users.grant(connection, row, given, actor=ACTOR, now=now)
    user = await users.find(connection, options.email)
    await _print_link(connection, user, Purpose.INVITATION, found, now=now)
    return 0


async def _list(connection: asyncpg.Connection, _: argparse.Namespace, __: Deployment) -> int:
    for user in await users.listed(connection):
        state = "disabled" if user.disabled else "invited" if user.invited else "active"
        codes = "codes" if user.codes else ""
        held = [
            " ".join(str(value) for value in row.values() if value is not None)
            for row in await connection.fetch(
                "select g.role, coalesce(o.name, 'everywhere'), r.ref, s.ref from grants g "
                "left join organisations o on o.id = g.organisation_id "
                "left join regions r on r.id = g.region_id left join sites s on s.id = g.site_id "
                "where g.user_id = $1 order by g.id",
                user.id,
            )
        ]
        print("\t".join((user.email, user.ref, state, codes, "; ".join(held))))
    return 0


async def _disable(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    user, now = await users.find(connection, options.email), datetime.now(UTC)
    async with connection.transaction():
        ended = await users.disable(connection, user.id, actor=ACTOR, now=now)
    print(f"{ended} sessions ended")
    return 0


async def _enable(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    user = await users.find(connection, options.email)
    await users.enable(connection, user.id, actor=ACTOR, now=datetime.now(UTC))
    return 0


async def _reset(
    connection: asyncpg.Connection, options: argparse.Namespace, found: Deployment
) -> int:
    now, user = datetime.now(UTC), await users.find(connection, options.email)
    if options.codes and user.codes:
        await users.forget_codes(connection, user, actor=ACTOR, now=now)
    purpose = Purpose.INVITATION if user.invited else Purpose.PASSWORD
    await _print_link(connection, user, purpose, found, now=now)
    return 0


async def _grant(connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment) -> int:
    user = await users.find(connection, options.email)
    given = await _grant_of(connection, options)
    if not await users.grant(connection, user.id, given, actor=ACTOR, now=datetime.now(UTC)):
        print("held already")
    return 0


async def _revoke(
    connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment
) -> int:
    user = await users.find(connection, options.email)
    taken = await _grant_of(connection, options)
    if not await users.revoke(connection, user.id, taken, actor=ACTOR, now=datetime.now(UTC)):
        raise NotFoundError(f"{user.email} does not hold this role there")
    return 0


async def _grant_of(connection: asyncpg.Connection, options: argparse.Namespace) -> Grant:
    """Return the grant that the options name. A region or site brings its organisation."""
    role = Role(options.role.replace("-", " "))
    organisation = region = site = None
    if options.organisation:
        organisation = await organisation_of(connection, options.organisation)
    for table, ref in (("regions", options.region), ("sites", options.site)):
        if not ref:
            continue
        row = await connection.fetchrow(
            f"select id, organisation_id from {table} where ref = $1",  # noqa: S608
            ref,
        )
        if row is None or organisation not in (None, row["organisation_id"]):
            raise NotFoundError(f"no {table[:-1]} {ref!r} there")
        organisation = row["organisation_id"]
        if table == "regions":
            region = row["id"]
        else:
            site = row["id"]
    if region is not None and site is not None:
        raise RefusedError("bad_scope", "give --region or --site, not both")
    return Grant(role, organisation, region, site)


async def organisation_of(connection: asyncpg.Connection, wanted: str) -> int:
    """Return the row of the organisation of this name or ref. Raises NotFoundError."""
    found: int | None = await connection.fetchval(
        "select id from organisations where name = $1 or ref = $1", wanted
    )
    if found is None:
        raise NotFoundError(f"no organisation {wanted!r}")
    return found


async def _print_link(
    connection: asyncpg.Connection,
    user: users.User,
    purpose: Purpose,
    found: Deployment,
    *,
    now: datetime,
) -> None:
    token = await users.link(connection, user, purpose, actor=ACTOR, now=now)
    until = (now + links.LIVES[purpose]).astimezone()
    print(links.address(found.settings.pages_url, purpose, token))
    print(f"works once, until {until:%Y-%m-%d %H:%M %Z}; give it to {user.email} alone")
