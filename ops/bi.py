"""`vestibule bi`: logins for BI tools, each of one organisation, for the views of schema `bi`.

Power BI, Tableau or Metabase connect to PostgreSQL with one. It reads these views and nothing else:
which organisation they show is bound to the name that somebody signed in with, in a table that it
cannot see. Statements end after two minutes unless the tool asks for longer, transactions after a
quarter of an hour whatever it asks for, and three connections at once are all it gets. The password
is shown once; the database keeps what proves it.

Logins are made by the database's administrator: of the embedded services, or VESTIBULE_DSN_ADMIN.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
import sys
from datetime import UTC, datetime
from urllib.parse import urlsplit

import asyncpg

from ops.deployment import Action, carry_out, deployment, home
from ops.people import organisation_of
from ops.services.stack import Stack
from ops.words import Verbs, parser_of
from server.audit.log import record
from server.config import SettingsError
from server.errors import NotFoundError

CONNECTIONS = 3
STATEMENT_TIMEOUT = "120s"
_KEEPER = "vestibule_maint"
"""Ends what stays open too long (`server.db.lingering`), as a member of each login's role."""
_SPILLED = "8GB"  # of sorts on the disk, by connection
_ROUNDS = 4096  # of SCRAM, as PostgreSQL itself does
_LONGEST_REF = 40  # a role's name has 63 bytes
_OF_ALL = """
    select oid::regprocedure::text from pg_proc where pronamespace = 'pg_catalog'::regnamespace
      and proname in ('lo_create', 'lo_creat', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_open',
        'pg_current_xact_id', 'txid_current', 'pg_logical_emit_message')
      and has_function_privilege('public', oid, 'execute')
"""
"""What anybody may do to all: fill the disk, or hold the feed of changes up by a number that a
transaction is given and keeps (`server.db.changes`)."""
_OURS = "vestibule_owner, vestibule_ingest, vestibule_desk, vestibule_maint"


def main(argv: list[str]) -> int:
    """Run the subcommand."""
    asyncio.run(run(argv))
    return 0


async def run(argv: list[str]) -> None:
    """Run the subcommand in one transaction."""
    await carry_out(_parser().parse_args(argv), dsn=_admin_dsn())


def _admin_dsn() -> str:
    """Return the administrator's way in. Raises SettingsError if nobody has named it."""
    if found := os.environ.get("VESTIBULE_DSN_ADMIN"):
        return found
    if os.environ.get("VESTIBULE_DSN_INGEST"):
        raise SettingsError("not set: VESTIBULE_DSN_ADMIN, of a role that may create roles")
    deployment(database_alone=True)  # brings it up
    return Stack(home()).endpoints.dsn("admin")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("bi", __doc__)
    verbs = Verbs[Action](parser, "add|list|remove")
    add = verbs.add("add", "make a login; prints how to connect, once", _add)
    add.add_argument("organisation", help="its name or ref")
    add.add_argument("--note", default="", help="what it is for")
    verbs.add("list", "list logins, without their passwords", _list)
    removing = verbs.add("remove", "end a login and its connections at once", _remove)
    removing.add_argument("login", help="as `vestibule bi list` names it")
    return parser


async def _add(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    organisation = await organisation_of(connection, options.organisation)
    ref = await connection.fetchval("select ref from organisations where id = $1", organisation)
    slug = re.sub(r"[^a-z0-9]+", "_", ref.lower())[:_LONGEST_REF]
    login, password = f"bi_{slug}_{secrets.token_hex(3)}", secrets.token_urlsafe(24)
    now = datetime.now(UTC)
    await _make(connection, login, verifier(password, salt=secrets.token_bytes(16)))
    await connection.execute(
        "insert into bi_logins (role, organisation_id, note, created_at) values ($1, $2, $3, $4)",
        *(login, organisation, options.note, now),
    )
    await record(
        connection, actor="command", act="bi login created", subject=login,
        detail={"note": options.note}, organisation=organisation, now=now,
    )  # fmt: skip
    url = urlsplit(_admin_dsn())
    print(f"server\t{url.hostname}:{url.port or 5432}\ndatabase\t{url.path[1:]}\nschema\tbi")
    print(f"user\t{login}\npassword\t{password}")
    print("shown once; keep it where secrets are kept", file=sys.stderr)


async def _make(connection: asyncpg.Connection, login: str, proof: str) -> None:
    """Create the role: it may connect and read the views, and nothing that everybody else may."""
    database = await connection.fetchval("select quote_ident(current_database())")
    for statement in (
        f"create role {login} login nosuperuser nocreatedb nocreaterole noinherit noreplication "
        f"nobypassrls connection limit {CONNECTIONS} password '{proof}'",
        f"alter role {login} set statement_timeout = '{STATEMENT_TIMEOUT}'",
        f"alter role {login} set idle_in_transaction_session_timeout = '{STATEMENT_TIMEOUT}'",
        f"alter role {login} set default_transaction_read_only = on",
        f"alter role {login} set search_path = bi",
        f"alter role {login} set timezone = 'UTC'",
        f"grant connect on database {database} to {login}",
        f"grant usage on schema bi to {login}",
        f"grant select on all tables in schema bi to {login}",
        f"grant {login} to {_KEEPER} with inherit true, set false",
    ):
        await connection.execute(statement)
    if await connection.fetchval("select has_parameter_privilege('temp_file_limit', 'set')"):
        await connection.execute(f"alter role {login} set temp_file_limit = '{_SPILLED}'")
    for (function,) in await connection.fetch(_OF_ALL):
        await connection.execute(f"revoke execute on function {function} from public")
        await connection.execute(f"grant execute on function {function} to {_OURS}")


def verifier(password: str, *, salt: bytes) -> str:
    """Return what PostgreSQL keeps of a password (RFC 5802), so that none travels in a statement.

    `password` is ASCII, which SASLprep leaves as it is.
    """
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ROUNDS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    salt64, stored64, server64 = (base64.b64encode(b).decode() for b in (salt, stored, server))
    return f"SCRAM-SHA-256${_ROUNDS}:{salt64}${stored64}:{server64}"


async def _list(connection: asyncpg.Connection, _: argparse.Namespace) -> None:
    rows = await connection.fetch(
        "select l.role, o.name, l.note, l.created_at, (select count(*) from pg_stat_activity a "
        "where a.usename = l.role) as connected from bi_logins l "
        "join organisations o on o.id = l.organisation_id order by l.created_at, l.role"
    )
    for role, organisation, note, created, connected in rows:
        words = f"created {created:%Y-%m-%d}, {connected} connected"
        print("\t".join((role, organisation, note, words)))


async def _remove(connection: asyncpg.Connection, options: argparse.Namespace) -> None:
    row = await connection.fetchrow(
        "delete from bi_logins where role = $1 returning role, organisation_id", options.login
    )
    if row is None:
        raise NotFoundError(f"no BI login {options.login!r}")
    login = await connection.fetchval("select quote_ident($1)", row["role"])
    await connection.execute(f"alter role {login} nologin")
    await connection.execute(f"drop owned by {login}")
    await record(
        connection, actor="command", act="bi login removed", subject=row["role"],
        organisation=row["organisation_id"], now=datetime.now(UTC),
    )  # fmt: skip
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", row["role"]
    )
    await connection.execute(f"drop role {login}")
