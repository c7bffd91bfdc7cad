"""Users and their grants. Every change is audited in its own transaction, the caller's.

The caller has checked that the actor may do it; `may_give` is the rule for grants.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError, RefusedError
from server.fleet.register import new_ref
from server.people import links, sessions, totp
from server.people.roles import Grant, Permission, Place, Role, may

_LETTER = r"[\w!#$%&*+/=^`{|}~-]"  # and no ?, by which mail begins what it would decode
_EMAIL = re.compile(
    rf"(?=[^@]{{1,64}}@[^@]{{1,190}}\Z){_LETTER}+(?:\.{_LETTER}+)*@[\w-]+(?:\.[\w-]+)*"
)
_MOST_NAME = 100


@dataclass(frozen=True, slots=True)
class User:
    """One user. `invited`: no password chosen yet."""

    id: int
    ref: str
    email: str
    name: str
    language: str
    invited: bool
    codes: bool
    disabled: bool


def may_give(giver: Iterable[Grant], grant: Grant) -> bool:
    """Whether who holds `giver` may give or take `grant`: they manage people in all its scope."""
    scope = Place(grant.organisation, grant.region, grant.site)
    return may(giver, Permission.MANAGE_PEOPLE, scope)


async def find(connection: asyncpg.Connection, wanted: str) -> User:
    """Return the user of this e-mail or ref. Raises NotFoundError."""
    rows = await listed(connection, wanted=wanted.strip())
    if not rows:
        raise NotFoundError(f"no user {wanted!r}")
    return rows[0]


async def listed(connection: asyncpg.Connection, *, wanted: str | None = None) -> list[User]:
    """Return all users, by e-mail; or the one that is `wanted` by e-mail or ref."""
    rows = await connection.fetch(
        "select id, ref, email, name, language, password_hash is null, "
        "totp_confirmed_at is not null, disabled_at is not null from users "
        "where $1::text is null or lower(email) = lower($1) or ref = $1 order by lower(email)",
        wanted,
    )
    return [User(*row.values()) for row in rows]


async def listed_with_grants(
    connection: asyncpg.Connection, *, organisation: int | None = None, ref: str | None = None
) -> list[tuple[User, list[Grant]]]:
    """Return users with all their grants, by e-mail: all, those of an organisation, the one."""
    rows = await connection.fetch(
        "select u.id, u.ref, u.email, u.name, u.language, u.password_hash is null, "
        "u.totp_confirmed_at is not null, u.disabled_at is not null, "
        "g.role, g.organisation_id, g.region_id, g.site_id "
        "from users u left join grants g on g.user_id = u.id "
        "where ($1::int is null or exists (select from grants o where o.user_id = u.id "
        "and o.organisation_id = $1)) and ($2::text is null or u.ref = $2) "
        "order by lower(u.email), u.id, g.id",
        *(organisation, ref),
    )
    found: dict[int, tuple[User, list[Grant]]] = {}
    for row in rows:
        *facts, role, at, region, site = row.values()
        _, grants = found.setdefault(row["id"], (User(*facts), []))
        if role is not None:
            grants.append(Grant(Role(role), at, region, site))
    return list(found.values())


async def grants_of(connection: asyncpg.Connection, user_id: int) -> list[Grant]:
    return (await grants_of_each(connection, [user_id]))[user_id]


async def grants_of_each(
    connection: asyncpg.Connection, user_ids: Iterable[int]
) -> dict[int, list[Grant]]:
    """Return the grants of each of these users, of one who holds none an empty list."""
    found: dict[int, list[Grant]] = {user: [] for user in user_ids}
    rows = await connection.fetch(
        "select user_id, role, organisation_id, region_id, site_id from grants "
        "where user_id = any($1::int[]) order by id",
        list(found),
    )
    for user, role, *place in (row.values() for row in rows):
        found[user].append(Grant(Role(role), *place))
    return found


async def add(
    connection: asyncpg.Connection,
    *,
    email: str,
    name: str = "",
    language: str = "en",
    actor: str,
    organisation: int | None = None,
    now: datetime,
) -> int:
    """Add a user, who can do nothing yet; return the row. ConflictError if the e-mail is taken."""
    email = demand_email(email)
    row = await connection.fetchrow(
        "insert into users (ref, email, name, language, created_at) values ($1, $2, $3, $4, $5) "
        "on conflict ((lower(email))) do nothing returning id, ref",
        new_ref("user"),
        email,
        demand_name(name) if name else "",
        language,
        now,
    )
    if row is None:
        raise ConflictError(f"there is a user {email} already")
    await _note(connection, row["ref"], "user added", actor, now=now, organisation=organisation)
    added: int = row["id"]
    return added


async def invite(
    connection: asyncpg.Connection,
    email: str,
    given: Grant,
    *,
    name: str,
    language: str,
    openly: bool,
    actor: str,
    now: datetime,
) -> str | None:
    """Give whoever has this e-mail a role, and return an invitation's token.

    None for who holds a role there already. Unless `openly`, nothing tells whether there was an
    account: the work, the answer and the organisation's audit are the same, and who has one gets a
    hollow link. Raises RefusedError (bad_email, bad_name, bad_scope).
    """
    chain = given.organisation if openly else None
    try:
        await add(
            connection,
            email=email,
            name=name,
            language=language,
            actor=actor,
            organisation=chain,
            now=now,
        )
        known = False
    except ConflictError:
        known = True
    user = await find(connection, email)
    held = await grants_of(connection, user.id)
    await grant(connection, user.id, given, actor=actor, now=now)
    if known and (openly or any(one.organisation == given.organisation for one in held)):
        return None
    if known:
        await _note(connection, user.ref, "user invited", actor, now=now, organisation=None)
        return await hollow_link(connection, user, actor=actor, now=now)
    return await link(connection, user, links.Purpose.INVITATION, actor=actor, now=now)


def demand_email(text: str) -> str:
    """Return an e-mail without the space around it. Raises RefusedError (bad_email).

    It has no comments, quotes, groups or literals: mail would make others, or none, of them.
    """
    text = text.strip()
    if not _EMAIL.fullmatch(text):
        raise RefusedError("bad_email", f"expected an e-mail address, got {text[:80]!r}")
    return text


def demand_name(text: str) -> str:
    """Return a person's name. Raises RefusedError (bad_name)."""
    text = " ".join(text.split())
    if not text or len(text) > _MOST_NAME or not text.isprintable():
        raise RefusedError("bad_name", f"a name has 1 to {_MOST_NAME} characters")
    return text


async def grant(
    connection: asyncpg.Connection, user_id: int, given: Grant, *, actor: str, now: datetime
) -> bool:
    """Give a role within a scope; False if it was held already."""
    await _demand_scope(connection, given)
    done: str = await connection.execute(
        "insert into grants (user_id, role, organisation_id, region_id, site_id, granted_at) "
        "values ($1, $2, $3, $4, $5, $6) on conflict do nothing",
        user_id,
        given.role,
        given.organisation,
        given.region,
        given.site,
        now,
    )
    if done != "INSERT 0 1":
        return False
    await _note_grant(connection, user_id, given, "role granted", actor, now=now)
    return True


async def revoke(
    connection: asyncpg.Connection, user_id: int, taken: Grant, *, actor: str, now: datetime
) -> bool:
    """Take a role away, from the next request on; False if it was not held.

    Vouchers for sites where the user may not provision any more are void, as with `disable`.
    """
    done: str = await connection.execute(
        "delete from grants where user_id = $1 and role = $2 "
        "and organisation_id is not distinct from $3 and region_id is not distinct from $4 "
        "and site_id is not distinct from $5",
        user_id,
        taken.role,
        taken.organisation,
        taken.region,
        taken.site,
    )
    if done != "DELETE 1":
        return False
    await _void_vouchers(connection, user_id)
    await _note_grant(connection, user_id, taken, "role revoked", actor, now=now)
    return True


async def may_at_site(
    connection: asyncpg.Connection, user_id: int, permission: Permission, site: int
) -> bool:
    """Whether somebody who is not signed in holds a permission at a site, and is not disabled."""
    place = await connection.fetchrow(
        "select s.organisation_id, s.region_id, s.id from sites s join users u on u.id = $2 "
        "where s.id = $1 and u.disabled_at is null",
        site,
        user_id,
    )
    held = await grants_of(connection, user_id)
    return place is not None and may(held, permission, Place(*place))


async def disable(
    connection: asyncpg.Connection, user_id: int, *, actor: str, now: datetime
) -> int:
    """Shut a user out at once: sessions end, links and vouchers are void.

    Returns how many sessions ended. A voucher is void from its beginning: the phone itself says
    when an act was done, so one that comes later could say that it was before.
    """
    ref = await connection.fetchval(
        "update users set disabled_at = $2 where id = $1 and disabled_at is null returning ref",
        user_id,
        now,
    )
    if ref is None:
        raise ConflictError("this user is disabled already")
    ended = await sessions.end_all(connection, user_id, now=now)
    await links.void(connection, user_id, now=now)
    await connection.execute(
        "update vouchers set withdrawn_at = created_at where user_id = $1", user_id
    )
    await _note(connection, ref, "user disabled", actor, now=now, organisation=None, ended=ended)
    return ended


async def enable(
    connection: asyncpg.Connection, user_id: int, *, actor: str, now: datetime
) -> None:
    """Let a disabled user in again, by their password."""
    ref = await connection.fetchval(
        "update users set disabled_at = null where id = $1 and disabled_at is not null "
        "returning ref",
        user_id,
    )
    if ref is None:
        raise ConflictError("this user is not disabled")
    await _note(connection, ref, "user enabled", actor, now=now, organisation=None)


async def link(
    connection: asyncpg.Connection,
    user: User,
    purpose: links.Purpose,
    *,
    actor: str,
    now: datetime,
) -> str:
    """Make a one-time link for a user and return its token. RefusedError if they are disabled."""
    if user.disabled:
        raise RefusedError("disabled", f"{user.email} is disabled")
    token = await links.make(connection, user.id, purpose, now=now)
    await _note(connection, user.ref, f"{purpose} link made", actor, now=now, organisation=None)
    return token


async def hollow_link(
    connection: asyncpg.Connection, user: User, *, actor: str, now: datetime
) -> str:
    """Make an invitation to who has an account elsewhere and return its token."""
    token = await links.make_hollow(connection, user.id, now=now)
    purpose = links.Purpose.INVITATION
    await _note(connection, user.ref, f"{purpose} link made", actor, now=now, organisation=None)
    return token


async def note_codes(
    connection: asyncpg.Connection, user: User, *, actor: str, now: datetime
) -> None:
    """Audit that the user is asked for codes from now on."""
    await _note(connection, user.ref, "codes begun", actor, now=now, organisation=None)


async def forget_codes(
    connection: asyncpg.Connection, user: User, *, actor: str, now: datetime
) -> None:
    """Ask the user for no codes any more: a lost phone, or their own wish."""
    await totp.forget(connection, user.id)
    await _note(connection, user.ref, "codes ended", actor, now=now, organisation=None)


async def set_password(
    connection: asyncpg.Connection,
    user_id: int,
    password_hash: str,
    *,
    keep: int | None = None,
    actor: str,
    now: datetime,
) -> None:
    """Set a password; every session but `keep` ends, and links are void."""
    ref = await connection.fetchval(
        "update users set password_hash = $2 where id = $1 returning ref", user_id, password_hash
    )
    ended = await sessions.end_all(connection, user_id, but=keep, now=now)
    await links.void(connection, user_id, now=now)
    await _note(connection, ref, "password set", actor, now=now, organisation=None, ended=ended)


async def introduce(
    connection: asyncpg.Connection, user_id: int, *, name: str, language: str
) -> None:
    """Set a user's own name and language."""
    await connection.execute(
        "update users set name = $2, language = $3 where id = $1",
        user_id,
        demand_name(name),
        language,
    )


async def _void_vouchers(connection: asyncpg.Connection, user_id: int) -> None:
    """Void, from their beginning, a user's vouchers for where they may not provision."""
    held = await grants_of(connection, user_id)
    rows = await connection.fetch(
        "select v.id, s.organisation_id, s.region_id, v.site_id from vouchers v "
        "join sites s on s.id = v.site_id where v.user_id = $1",
        user_id,
    )
    await connection.execute(
        "update vouchers set withdrawn_at = created_at where id = any($1::int[])",
        [row for row, *place in rows if not may(held, Permission.PROVISION, Place(*place))],
    )


async def _demand_scope(connection: asyncpg.Connection, given: Grant) -> None:
    """Raise RefusedError unless region and site are the organisation's."""
    for table, row in (("regions", given.region), ("sites", given.site)):
        if row is None:
            continue
        owner = await connection.fetchval(
            f"select organisation_id from {table} where id = $1",  # noqa: S608
            row,
        )
        if owner is None or owner != given.organisation:
            raise RefusedError("bad_scope", "region and site must be the organisation's own")


async def _note_grant(
    connection: asyncpg.Connection,
    user_id: int,
    changed: Grant,
    act: str,
    actor: str,
    *,
    now: datetime,
) -> None:
    ref = await connection.fetchval("select ref from users where id = $1", user_id)
    await _note(
        connection,
        ref,
        act,
        actor,
        now=now,
        organisation=changed.organisation,
        role=changed.role.value,
        region=changed.region,
        site=changed.site,
    )


async def _note(
    connection: asyncpg.Connection,
    ref: str,
    act: str,
    actor: str,
    *,
    now: datetime,
    organisation: int | None,
    **detail: object,
) -> None:
    """Record; an e-mail or a name never stands in the chain, which forgets nothing."""
    await record(
        connection,
        actor=actor,
        act=act,
        subject=f"user {ref}",
        detail={key: value for key, value in detail.items() if value is not None},
        organisation=organisation,
        now=now,
    )
