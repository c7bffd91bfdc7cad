"""`vestibule device suspend|quarantine|reinstate|return|retire|show`: who may speak.

The order stands as soon as the command returns: ingest refuses what comes from then on. The
server's admission worker brings it to the broker; where it runs, the command waits and says when.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import asyncpg

from ops.deployment import Deployment, actor
from server.admission import orders
from server.admission.worker import LOCK, reload_words
from server.errors import NotFoundError
from server.fleet.lifecycle import State

WAIT_S = 20.0
_ASK_EVERY_S = 0.05
_ENDS = {
    "suspend": (State.SUSPENDED, "keep a device out until it is reinstated"),
    "quarantine": (State.QUARANTINED, "keep a device out while it is looked into"),
    "return": (State.RETURNED, "end its stay with its owner; its certificates are revoked"),
    "retire": (State.RETIRED, "end its life; its certificates are revoked for good"),
}
Follow = Callable[[asyncpg.Connection, argparse.Namespace], Awaitable[int]]


def add_commands(device: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to `vestibule device`."""
    for verb, (state, words) in _ENDS.items():
        parser = device.add_parser(
            verb, help=words, aliases=["revoke"] if state is State.RETIRED else []
        )
        _add_common(parser)
        parser.set_defaults(act=_move, to=state, follow=_follow)
    parser = device.add_parser("reinstate", help="let a suspended or quarantined device back in")
    _add_common(parser)
    parser.set_defaults(act=_move, to=None, follow=_follow)
    parser = device.add_parser("show", help="show a device's state, certificates and orders")
    parser.add_argument("device", help="its id or serial number")
    parser.set_defaults(act=_show)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", help="its id or serial number")
    parser.add_argument("--reason", required=True, help="why: it is written down")


async def _move(connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment) -> int:
    device = await orders.find(connection, options.device)
    asked = {
        "device": device,
        "reason": options.reason,
        "actor": actor(),
        "now": datetime.now(UTC),
    }
    if options.to is None:
        moved = await orders.reinstate(connection, **asked)
    else:
        moved = await orders.move(connection, to=options.to, **asked)
    options.moved = moved
    print(f"{device} was {moved.before}, is {moved.after}" if moved.changed
          else f"{device} is {moved.after} already")  # fmt: skip
    return 0


async def _follow(connection: asyncpg.Connection, options: argparse.Namespace) -> int:
    """Say what the worker has done, as it does it; after the commit."""
    moved: orders.Moved = options.moved
    if moved.order is None:
        return 0
    if not await _worker_runs(connection):
        print("the broker is told when the server runs; ingest refuses or takes it from now on")
        return 0
    said: set[str] = set()
    trouble = ""
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    while loop.time() < until:
        row = await connection.fetchrow(
            "select admit, trouble, "
            "extract(epoch from broker_at - asked_at)::float8 as broker, "
            "extract(epoch from crl_at - asked_at)::float8 as list, "
            "extract(epoch from proved_at - asked_at)::float8 as proof "
            "from admissions where id = $1",
            moved.order,
        )
        words = "let in at the broker" if row["admit"] else "denied at the broker, session closed"
        for step, text in (
            ("broker", words),
            ("list", "revocation list in order"),
            ("proof", "proved: who is denied is inert, who is admitted is not"),
        ):
            if row[step] is not None and step not in said:
                said.add(step)
                print(f"{text} after {max(0, round(row[step] * 1000))} ms")
        if len(said) == 3:
            if moved.after in (State.RETURNED, State.RETIRED):
                print(reload_words(None))
            return 0
        if row["trouble"] not in ("", trouble):
            trouble = row["trouble"]
            print(f"waiting: {trouble}", file=sys.stderr)
        await asyncio.sleep(_ASK_EVERY_S)
    print("not all is done yet; `vestibule device show` says when", file=sys.stderr)
    return 1


async def _worker_runs(connection: asyncpg.Connection) -> bool:
    runs: bool = await connection.fetchval(
        "select exists (select from pg_locks where locktype = 'advisory' and granted "
        "and database = (select oid from pg_database where datname = current_database()) "
        "and (classid::bigint << 32 | objid::bigint) = $1)",
        LOCK,
    )
    return runs


async def _show(connection: asyncpg.Connection, options: argparse.Namespace, _: Deployment) -> int:
    device = await orders.find(connection, options.device)
    row = await connection.fetchrow(
        "select d.*, o.name as organisation, p.name as spot, s.name as site from devices d "
        "join organisations o on o.id = d.organisation_id "
        "left join assignments a on a.device_id = d.id and a.valid @> now() "
        "left join spots p on p.id = a.spot_id left join sites s on s.id = p.site_id "
        "where d.device = $1",
        device,
    )
    if row is None:
        raise NotFoundError(f"no device {device!r}")
    admitted = "admitted" if row["admitted"] else "not admitted"
    print(f"{device}  {row['kind']}  serial {row['serial'] or '-'}  {row['organisation']}")
    print(f"{row['state']} since {_text(row['state_since'])}, {admitted}"
          + (f"; returns to {row['state_before']}" if row["state_before"] else ""))  # fmt: skip
    print(f"at {row['site']}, {row['spot']}" if row["spot"] else "at no spot")
    print("\ncertificates")
    for each in await connection.fetch(
        "select serial, state, reason, not_after, revoked_at from certificates "
        "where device_id = $1 order by recorded_at",
        row["id"],
    ):
        revoked = f", revoked {_text(each['revoked_at'])}" if each["revoked_at"] else ""
        ends = _text(each["not_after"])
        print(f"  {each['serial']}  {each['state']} ({each['reason']}), until {ends}{revoked}")
    print("\norders")
    for each in await connection.fetch(
        "select * from admissions where device_id = $1 order by id", row["id"]
    ):
        verb = "let in" if each["admit"] else "keep out"
        print(f"  {_text(each['asked_at'])}  {verb}: {each['reason']} ({each['asked_by']})")
        print(f"    broker {_after(each, 'broker_at')}, list {_after(each, 'crl_at')}, "
              f"proved {_after(each, 'proved_at')}"
              + (f"; waits: {each['trouble']}" if each["trouble"] else ""))  # fmt: skip
    return 0


def _text(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S}Z"


def _after(order: asyncpg.Record, step: str) -> str:
    if order[step] is None:
        return "not yet"
    return f"after {max(0, round((order[step] - order['asked_at']).total_seconds() * 1000))} ms"
